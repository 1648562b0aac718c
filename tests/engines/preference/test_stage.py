"""The dpo stage: resumed bit for bit, evaluated, started from an adapter, requested, and refused data by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.events.results import Evaluated, SampledText
from engines.events.runs import ControlApplied
from engines.events.steps import Step
from engines.words import Verb
from recipes.problems import OperatorError
from tests.engines.preference.pairs import DPO, WHOLE, row, write_pairs
from tests.engines.training import tiny
from tests.engines.training.attempts import ask, context, of_kind, resume_point, run_stage, trajectory

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param({**DPO, "lora_dropout": 0.1, "disable_dropout": False}, id="dropout"),
        pytest.param(
            {**DPO, "precompute_ref_log_probs": True, "padding_free": False},
            id="precomputed",
            marks=pytest.mark.thorough,
        ),
        pytest.param(WHOLE, id="all-weights"),
        pytest.param(
            {**WHOLE, "precompute_ref_log_probs": True}, id="all-weights-precomputed", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_resume_continues_bit_for_bit_with_every_measured_value(
    tmp_path: Path, model: Path, pairs: Path, stage: dict[str, Any]
) -> None:
    inputs, stage = {"model": model, "data": pairs}, {**stage, "max_steps": 5}
    whole = context(tmp_path / "whole", stage, inputs)
    result = run_stage(whole)
    broken = context(tmp_path / "broken", stage, inputs)
    ask(broken, Verb.STOP, at_step=4)
    assert run_stage(broken) is None
    again = context(tmp_path / "broken", stage, inputs, attempt=2, resume=resume_point(broken, 3))
    resumed = run_stage(again)
    assert trajectory(again, 2) == trajectory(whole, 1, after=3)
    measured = [step.metrics for step in of_kind(again, Step, 2)]
    assert measured == [step.metrics for step in of_kind(whole, Step) if step.step > 3]
    assert tiny.weights_sha256(again.out) == tiny.weights_sha256(whole.out)
    assert result is not None
    assert resumed is not None
    for name in ("rewards/margins", "logps/chosen", "loss", "tokens", "loss_tokens"):
        assert resumed.metrics[name] == result.metrics[name], "means of the last steps survive the resume"


def test_tokens_are_those_of_both_answers_without_padding_and_the_loss_counts_the_answers_and_their_ends(
    tmp_path: Path, model: Path, pairs: Path
) -> None:
    ctx = context(tmp_path, {**DPO, "max_steps": 4}, {"model": model, "data": pairs})
    result = run_stage(ctx)
    # Each byte and each control token is a token: <|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n…<|im_end|>\n
    asked = [len("user\n") + len(row(n)["prompt"]) + len("\nassistant\n") + 3 for n in range(13)]
    answers = [len(row(n)["chosen"]) + 1 + len(row(n)["rejected"]) + 1 for n in range(13)]
    assert result is not None
    last = of_kind(ctx, Step)[-1]
    assert last.loss_tokens == sum(answers) == result.metrics["scored_tokens"], "one epoch is four steps"
    assert last.tokens == sum(answers) + 2 * sum(asked) + 2 * 13


def test_evaluations_have_the_method_s_figures_and_no_perplexity(tmp_path: Path, model: Path, pairs: Path) -> None:
    ctx = context(
        tmp_path,
        {**DPO, "max_steps": 4, "eval_steps": 4, "per_device_eval_batch_size": 3},
        {"model": model, "data": pairs},
    )
    ask(ctx, Verb.EVALUATE, at_step=1)
    result = run_stage(ctx)
    early, late = of_kind(ctx, Evaluated)
    assert early.perplexity is None
    assert "beta=0.1, loss_type=sigmoid" in early.protocol
    assert (late.metrics["rewards/margins"] or 0) > (early.metrics["rewards/margins"] or 0)
    assert result is not None
    assert result.metrics["eval_rewards/margins"] == late.metrics["rewards/margins"]
    assert "eval_perplexity" not in result.metrics


def test_it_samples_and_changes_its_rate_on_request(tmp_path: Path, model: Path, pairs: Path) -> None:
    ctx = context(tmp_path, {**DPO, "max_steps": 3}, {"model": model, "data": pairs})
    ask(ctx, Verb.SAMPLE, at_step=2, text="q1?")
    ask(ctx, Verb.LEARNING_RATE, 1e-3, at_step=3)
    run_stage(ctx)
    assert len(of_kind(ctx, SampledText)) == 1
    assert [applied.step for applied in of_kind(ctx, ControlApplied)] == [2, 3]


def test_from_an_adapter_the_reference_is_that_adapter(tmp_path: Path, model: Path, pairs: Path) -> None:
    inputs = {"model": model, "data": pairs}
    few = {**DPO, "max_steps": 4}
    first = context(tmp_path / "first", few, inputs)
    run_stage(first)
    second = context(tmp_path / "second", {**few, "start_from": "first"}, {**inputs, "start_from": first.out})
    run_stage(second)
    [before, *_, after] = of_kind(second, Step)
    assert before.loss == pytest.approx(0.6931471805, rel=1e-6), "no reward before the first step"
    assert before.metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert (after.metrics["rewards/margins"] or 0) > 0.01
    assert before.metrics["logps/chosen"] != of_kind(first, Step)[0].metrics["logps/chosen"]
    third = context(
        tmp_path / "second", {**few, "start_from": "first"}, {**inputs, "start_from": first.out}, attempt=2,
        resume=resume_point(second, 3),
    )  # fmt: skip
    run_stage(third)
    assert trajectory(third, 2) == trajectory(second, 1, after=3), "a resume has the same reference"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "q?", "completion": "a"}, "one answer, and this training compares two"),
        ({"prompt": "q?", "chosen": "a", "rejected": "a"}, "chosen and rejected are equal"),
        ({"prompt": "q?", "chosen": "a", "rejected": ""}, "rejected: the assistant's turn 2 has no content"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "compares two"),
    ],
    ids=["no pair", "equal", "empty", "messages"],
)
def test_rows_that_are_no_pairs_are_refused_by_their_place_with_a_way_out(
    tmp_path: Path, model: Path, line: dict[str, Any], words: str
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps(line) + "\n")
    with pytest.raises(OperatorError, match=words) as caught:
        run_stage(context(tmp_path / "run", DPO, {"model": model, "data": data}))
    assert "train.jsonl:1: " in caught.value.message
    assert caught.value.hint


def test_a_preference_in_a_finetune_stage_names_the_kind_that_takes_it(
    tmp_path: Path, model: Path, pairs: Path
) -> None:
    with pytest.raises(OperatorError) as caught:
        run_stage(context(tmp_path, tiny.FINETUNE, {"model": model, "data": pairs}))
    assert 'kind = "dpo"' in caught.value.hint


def test_one_by_one_in_one_sequence_and_padded_the_loss_and_its_gradients_are_the_same(
    tmp_path: Path, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.forward.arrangement import Arrangement
    from engines.preference import stage as preference

    found = []
    for number, (free, way) in enumerate([(False, None), (True, None), (True, Arrangement("row by row"))]):
        if way is not None:
            monkeypatch.setattr(preference, "arrange", lambda *_args, way=way, **_named: way)
        ctx = context(tmp_path / str(number), {**DPO, "max_steps": 2, "padding_free": free, "learning_rate": 1e-3},
                      {"model": model, "data": pairs})  # fmt: skip
        run_stage(ctx)
        found.append([(step.loss, step.grad_norm, *step.metrics.values()) for step in of_kind(ctx, Step)])
    padded, sequence, single = found
    for one, other, third in zip(padded, sequence, single, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert third == pytest.approx(one, rel=1e-4, abs=1e-5)
