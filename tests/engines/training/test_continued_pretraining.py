"""Continued pretraining of an existing model: windows of tokens, or documents, with the losses of a loop by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.events.results import Evaluated, SampledText
from engines.events.steps import Step
from engines.look.answer import Job
from engines.look.stage_look import look_at
from engines.training.schedule import Schedule
from engines.words import Verb
from recipes.problems import OperatorError
from tests.engines.training import tiny
from tests.engines.training.attempts import ask, context, of_kind, resume_point, run_stage, trajectory

pytestmark = pytest.mark.torch

LORA = ("r", "lora_alpha", "lora_dropout")
MODEL: dict[str, Any] = {
    **{key: value for key, value in tiny.FINETUNE.items() if key not in LORA},
    "output": "model",
    "max_length": 16,
    "max_steps": 3,
    "gradient_accumulation_steps": 1,
    "save_steps": 2,
}


def losses_by_hand(stage: dict[str, Any], model: Path, windows: list[list[list[int]]]) -> list[float]:
    """The loss of each step on these windows of rows of ids, with transformers and torch alone."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    trained: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32).train()
    weights = list(trained.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0)
    schedule = Schedule("cosine", warmup=0, total=stage["max_steps"], min_rate=0.1)
    found = []
    for step, rows in enumerate(windows):
        count, total = sum(len(row) - 1 for row in rows), 0.0
        for row in rows:
            ids = torch.tensor([row])
            loss = cross_entropy(trained(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = stage["learning_rate"] * schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        found.append(total)
    return found


def rows_of(batch: dict[str, Any]) -> list[list[int]]:
    """The rows of a batch of windows, or of one sequence of rows."""
    if "lengths" not in batch:
        return [row.tolist() for row in batch["input_ids"]]
    found, start = [], 0
    for length in batch["lengths"]:
        found.append(batch["input_ids"][0, start : start + length].tolist())
        start += length
    return found


def batches_of(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batches that a training will take."""
    from engines.training.steps import trainer

    seen: list[dict[str, Any]] = []
    step = trainer.EngineTrainer.training_step

    def note(self: Any, model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
        seen.append(dict(inputs))
        return step(self, model, inputs, *more, **named)

    monkeypatch.setattr(trainer.EngineTrainer, "training_step", note)
    return seen


def test_on_tokens_every_loss_is_that_of_a_loop_by_hand_and_a_resume_continues_bit_for_bit(
    tmp_path: Path, model: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = batches_of(monkeypatch)
    stage, inputs = {**MODEL, "eval_steps": 3}, {"model": model, "data": tokens}
    ctx = context(tmp_path, stage, inputs)
    ask(ctx, Verb.SAMPLE, at_step=1, text="abc")
    result = run_stage(ctx)
    assert result is not None
    windows = [rows_of(batch) for batch in seen]
    assert {len(row) for rows in windows for row in rows} == {16}
    losses = [step.loss for step in of_kind(ctx, Step)]
    assert losses == pytest.approx(losses_by_hand(stage, model, windows), rel=1e-5)
    assert (result.metrics["examples"], result.metrics["rows"], result.metrics["scored_tokens"]) == (21, 1, 21 * 15)
    assert [event.protocol for event in of_kind(ctx, Evaluated)] == ["windows(max_length=16)"]
    assert [event.prompt for event in of_kind(ctx, SampledText)] == ["abc"]
    again = context(tmp_path, stage, inputs, attempt=2, resume=resume_point(ctx, 2))
    run_stage(again)
    assert trajectory(again, 2) == trajectory(ctx, 1, after=2)
    assert tiny.weights_sha256(again.out) == tiny.weights_sha256(ctx.out)


def test_an_adapter_learns_from_tokens_too(tmp_path: Path, model: Path, tokens: Path) -> None:
    stage = {**tiny.FINETUNE, "max_length": 16, "max_steps": 1}
    result = run_stage(context(tmp_path, stage, {"model": model, "data": tokens}))
    assert result is not None
    assert result.artifacts[0].kind == "adapter"


def test_documents_become_windows_and_packed_their_losses_are_those_of_a_loop_by_hand(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a" * 40, "bc" * 5, "d", "efg" * 3, "hi" * 9]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    seen = batches_of(monkeypatch)
    stage = {**MODEL, "packing": True, "max_steps": 2}
    ctx = context(tmp_path / "run", stage, {"model": model, "data": tmp_path / "text"})
    result = run_stage(ctx)
    assert result is not None
    windows = [rows_of(batch) for batch in seen]
    assert [step.loss for step in of_kind(ctx, Step)] == pytest.approx(losses_by_hand(stage, model, windows), rel=1e-5)
    assert max(len(row) for rows in windows for row in rows) == 16
    assert result.metrics["examples"] == 8, "41, 11, 2, 10 and 19 tokens with their ends, in windows of 16"
    assert result.metrics["truncated_rows"] == result.metrics["dropped_rows"] == 0


def test_tokens_of_another_tokenizer_and_fields_of_rows_are_refused(tmp_path: Path, model: Path, tokens: Path) -> None:
    other = tiny.write_tokens(tmp_path / "other", {"train": 100})
    (other / "tokenizer" / "tokenizer.model").write_bytes(b"another vocabulary")
    with pytest.raises(OperatorError, match="not those of the tokenizer"):
        run_stage(context(tmp_path / "one", MODEL, {"model": model, "data": other}))
    with pytest.raises(OperatorError, match="train_on — the data is tokens"):
        run_stage(context(tmp_path / "two", {**MODEL, "train_on": "all"}, {"model": model, "data": tokens}))


def test_a_check_counts_the_windows_and_names_the_fields_that_tokens_do_not_have(model: Path, tokens: Path) -> None:
    stage = {**MODEL, "max_steps": None, "eval_steps": 4, "gradient_accumulation_steps": 2}
    table = {key: value for key, value in stage.items() if value is not None}
    look = look_at(Job(stage=table, data=str(tokens), model=str(model)), label_s=9.0, read_s=9.0)
    assert (look.examples, look.steps, look.evaluations, look.tokens) == (21, 6, 2, 21 * 16)
    assert look.defects == []
    wrong = look_at(Job(stage={**table, "packing": True}, data=str(tokens), model=None), label_s=9.0, read_s=9.0)
    assert [defect.field for defect in wrong.defects] == ["packing"]
