"""Each method of fine-tuning computes what a loop written by hand computes, resumes bit for bit, and gives a merged
model with the logits of the trained one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from engines.events.steps import Step
from recipes.problems import OperatorError
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, weights_sha256

pytestmark = pytest.mark.torch

LORA = ("r", "lora_alpha", "lora_dropout")
FULL: dict[str, Any] = {**{key: value for key, value in FINETUNE.items() if key not in LORA}, "output": "model"}
EXACT: dict[str, Any] = {**FINETUNE, "lora_dropout": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "lora": EXACT,
    "dora": {**EXACT, "use_dora": True},
    "qlora": {**EXACT, "load_in_4bit": True},
}


BY_HAND: dict[str, Any] = {
    "gradient_accumulation_steps": 3,
    "warmup_steps": 3.0,
    "max_grad_norm": 0.7,
    "weight_decay": 0.1,
    "save_steps": 1000,
}
"""Ragged windows, a warm-up, norms on both sides of the limit, decay of weights."""
DROPOUT: dict[str, Any] = {"lora_dropout": 0.1}
COMPARED: dict[str, dict[str, Any]] = {
    "full": {"max_grad_norm": 5.8, "learning_rate": 1e-3},
    "lora": DROPOUT,
    "dora": DROPOUT,
    "qlora": {**DROPOUT, "bnb_4bit_use_double_quant": True, "eval_steps": 4},  # an evaluation changes nothing
    "lora, no dropout": {},
    "dora, no dropout": {},
    "qlora, no dropout": {"bnb_4bit_use_double_quant": False},
    "lora, padded": {"padding_free": False},
}


class Kept:
    """A run's model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        finetune: Any = importlib.import_module("engines.finetune.stage")
        self.model: Any = None
        session, kept = finetune.Session, self

        class Recorded(session):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                kept.model = self.task.model

        monkeypatch.setattr(finetune, "Session", Recorded)


@pytest.mark.parametrize(
    ("name", "steps"),
    [pytest.param(name, 5) for name in ("full", "lora", "dora", "qlora")]
    + [pytest.param(name, 20, marks=pytest.mark.thorough) for name in COMPARED],
)
def test_losses_rates_and_norms_are_those_of_a_loop_written_by_hand(
    name: str, steps: int, tmp_path: Path, model: Path, messages: Path
) -> None:
    from tests.engines.training import by_hand

    stage = {**METHODS[name.partition(",")[0]], **BY_HAND, **COMPARED[name], "max_steps": steps}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    events = of_kind(ctx, Step)
    assert len(events) == steps
    norms = [event.grad_norm or 0.0 for event in events]
    assert min(norms) < stage["max_grad_norm"] < max(norms), "some steps are clipped, and some are not"
    expected = by_hand.steps(model, by_hand.chatml_rows(model, messages), stage)
    for event, hand in zip(events, expected, strict=True):
        assert event.loss == pytest.approx(hand.loss, rel=1e-6), event.step
        assert event.grad_norm == pytest.approx(hand.grad_norm, rel=1e-6), event.step
        assert event.learning_rate == pytest.approx(hand.learning_rate, rel=1e-12), event.step


@pytest.mark.parametrize("name", ["full", "qlora"])
def test_a_resume_continues_bit_for_bit(name: str, tmp_path: Path, model: Path, messages: Path) -> None:
    dropout = (
        {"max_steps": 5} if name == "full" else {"max_steps": 5, "lora_dropout": 0.1, "gradient_checkpointing": True}
    )
    check_resumes({**METHODS[name], **dropout}, tmp_path, model, messages, steps=[3])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["full", "lora", "dora", "qlora"])
def test_a_resume_from_any_step_continues_bit_for_bit(name: str, tmp_path: Path, model: Path, messages: Path) -> None:
    dropout = {} if name == "full" else {"lora_dropout": 0.1}
    stage = {**METHODS[name], **dropout, "max_steps": 21, "save_steps": 1, "save_total_limit": 30}
    check_resumes(stage, tmp_path, model, messages, steps=list(range(1, 21)))


def check_resumes(stage: dict[str, Any], tmp_path: Path, model: Path, messages: Path, steps: list[int]) -> None:
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, stage, inputs)
    run_stage(whole)
    for attempt, step in enumerate(steps, start=2):
        again = context(tmp_path, stage, inputs, attempt=attempt, resume=resume_point(whole, step))
        run_stage(again)
        assert trajectory(again, attempt) == trajectory(whole, 1, after=step)
        assert weights_sha256(again.out) == weights_sha256(whole.out)


def logits_of(model: Any) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).reshape(1, -1)).logits[0].double()


VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-niter": {"init_lora_weights": "pissa_niter_4", "use_rslora": True},
    "olora": {"init_lora_weights": "olora", "target_modules": ["q_proj", "down_proj"]},
    "modules": {"init_lora_weights": "gaussian", "modules_to_save": ["norm", "up_proj"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough if n in ("pissa-niter", "olora") else []) for n in VARIANTS]
)
def test_a_merged_model_has_the_logits_of_the_trained_one(
    name: str, tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from exporters.lora.merge import merge

    kept = Kept(monkeypatch)
    stage = {**EXACT, **VARIANTS[name], "max_steps": 3}
    ctx = context(tmp_path / "run", stage, {"model": model, "data": messages})
    run_stage(ctx)
    trained = logits_of(kept.model)
    (tmp_path / "merged").mkdir()
    merge(model, [(ctx.out, 1.0)], tmp_path / "merged", dtype="float32")
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    served = logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), ctx.out))
    base = logits_of(AutoModelForCausalLM.from_pretrained(model))
    assert float((trained - base).abs().max()) > 1e-2, "the training changes the model"
    assert torch.allclose(merged, trained, atol=2e-5, rtol=0)
    assert torch.allclose(served, trained, atol=2e-5, rtol=0)


def test_all_weights_are_in_the_model_that_a_full_fine_tuning_leaves(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engines.evaluate.stage import run as evaluate

    kept = Kept(monkeypatch)
    ctx = context(tmp_path / "run", {**FULL, "max_steps": 2}, {"model": model, "data": messages})
    result = run_stage(ctx)
    assert result is not None
    assert result.artifacts[0].kind == "model"
    assert result.metrics["trainable_parameters"] == result.metrics["parameters"]
    before = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    after: Any = AutoModelForCausalLM.from_pretrained(ctx.out)
    assert all(not torch.equal(before[name], weight) for name, weight in after.named_parameters())
    assert torch.equal(logits_of(after), logits_of(kept.model))
    again = context(tmp_path / "again", {**FINETUNE, "max_steps": 1}, {"model": ctx.out, "data": messages})
    assert run_stage(again) is not None
    stage = {"name": "after", "kind": "evaluate", "model": "tune", "data": "questions", "split": "val"}
    scored = evaluate(context(tmp_path / "scored", stage, {"model": ctx.out, "data": messages}))
    assert scored.metrics["tokens"] > 0


def test_an_adapter_over_four_bits_is_float32_and_says_how_its_base_was_loaded(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    from safetensors.torch import load_file

    from engines.evaluate.four_bits import OTHER_BASE
    from engines.evaluate.model import load_model

    stage = {**METHODS["qlora"], "bnb_4bit_use_double_quant": True, "optim": "adamw_8bit", "max_steps": 1}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    assert {str(tensor.dtype) for tensor in load_file(ctx.out / "adapter_model.safetensors").values()} == {
        "torch.float32"
    }
    said: list[str] = []
    load_model(ctx.out, "x", said.append, load_in_4bit=True)
    assert said == []
    load_model(ctx.out, "x", said.append)
    assert said == [f"{ctx.out}: {OTHER_BASE}"], "over its 16-bit base it is another model"
    record = json.loads((ctx.out / "base.json").read_text())["quantization"]
    assert record["bnb_4bit_quant_type"] == "nf4"
    assert record["bnb_4bit_use_double_quant"] is True
    assert record["bnb_4bit_compute_dtype"] == "float32"


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path, model: Path, messages: Path) -> None:
    inputs: dict[str, Path | str] = {"model": model, "data": messages}
    full = context(tmp_path / "full", {**FULL, "max_steps": 1}, inputs)
    run_stage(full)
    point = resume_point(full, 1).path
    for stage, words in (
        (EXACT, "is of a training of all weights of a model, and this stage trains an adapter"),
        ({**FULL, "optim": "adamw_8bit"}, "has the state of adamw_torch_fused; got optim = adamw_8bit"),
    ):
        other = context(tmp_path / words[:8].strip(), {**stage, "start_from": "x"}, {**inputs, "start_from": point})
        with pytest.raises(OperatorError, match=words):
            run_stage(other)


def test_a_merge_says_how_far_it_is_from_the_model_that_was_trained_over_four_bits(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engines.events.writers import Warned
    from exporters.lora.merge import merge
    from exporters.stages.merge_stage import run as merge_stage

    kept = Kept(monkeypatch)
    ctx = context(tmp_path / "run", {**METHODS["qlora"], "max_steps": 3}, {"model": model, "data": messages})
    run_stage(ctx)
    trained = logits_of(kept.model)
    (tmp_path / "exact").mkdir()
    merge(model, [(ctx.out, 1.0)], tmp_path / "exact", dtype="float32", base_rounding="nf4")
    assert torch.allclose(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "exact")), trained, atol=2e-5)
    found = {}
    for rounding in ("none", "nf4"):
        stage = {"name": "merged", "kind": "merge", "model": "base", "adapter": "tune", "parity_positions": 64}
        given = {**stage, "dtype": "float32", "base_rounding": rounding}
        merged = context(tmp_path / rounding, given, {"model": model, "adapter": ctx.out})
        found[rounding] = merge_stage(merged).metrics
        assert any("in 4 bits (nf4)" in event.message for event in of_kind(merged, Warned)) is (rounding == "none")
    assert found["none"]["mean_kl"] < 1e-6 < found["none"]["kl_to_trained"]
    assert found["nf4"]["kl_to_trained"] < 1e-6 < found["nf4"]["mean_kl"]
