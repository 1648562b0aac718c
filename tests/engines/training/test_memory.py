"""Exhausted memory ends an attempt with its reason; with half the micro-batch, training continues as if it had not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.events.steps import GuardTripped, Step
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage
from tests.engines.training.tiny import FINETUNE, PRETRAIN

pytestmark = pytest.mark.torch

WINDOW = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
HALF = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
FAULT = {"memory_limit": {"rows": 2, "step": 5}}


def _values(ctx: Any, attempt: int, after: int = 0) -> list[tuple[Any, ...]]:
    return [
        (e.step, e.tokens, e.loss_tokens, e.learning_rate, e.loss, e.grad_norm)
        for e in of_kind(ctx, Step, attempt)
        if e.step > after
    ]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_losses_after_a_halved_micro_batch_equal_those_without_up_to_the_order_of_sums(
    tmp_path: Path, tokens: Path, model: Path, messages: Path, kind: str
) -> None:
    base, inputs = (
        (PRETRAIN, {"data": tokens}) if kind == "pretrain" else (FINETUNE, {"model": model, "data": messages})
    )
    stage = (
        {**base, **WINDOW, "attention_dropout": 0.0} if kind == "pretrain" else {**base, **WINDOW, "lora_dropout": 0}
    )
    stage = {key: float(value) if key == "lora_dropout" else value for key, value in stage.items()}
    whole = context(tmp_path / "whole", stage, inputs)
    run_stage(whole)
    ctx = context(tmp_path / "tried", stage, inputs, test_faults=FAULT)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run_stage(ctx)
    trips = of_kind(ctx, GuardTripped)
    assert [(e.guard, e.step, e.value) for e in trips] == [("out_of_memory", 5, None)]
    resumed = context(
        tmp_path / "tried", {**stage, **HALF}, inputs, attempt=2, resume=resume_point(ctx, 3), test_faults=FAULT
    )
    assert run_stage(resumed) is not None
    expected, found = _values(whole, 1, 3), _values(resumed, 2)
    assert [row[:4] for row in found] == [row[:4] for row in expected], "the same rows, tokens and rates in each step"
    for got, wanted in zip(found, expected, strict=True):
        assert got[4:] == pytest.approx(wanted[4:], rel=2e-5)


@pytest.mark.parametrize("most", [1, 3])
def test_an_evaluation_that_memory_does_not_hold_is_divided_and_gives_the_same_loss(
    model: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    from transformers import AutoModelForCausalLM

    from engines.training import loss as module
    from engines.training.fitting import Fitting

    network = AutoModelForCausalLM.from_pretrained(model)
    rows = [module.Example(list(range(3, 3 + length)), list(range(3, 3 + length))) for length in range(4, 12)]
    batches = [module.pad_batch(rows[:5]), module.pad_batch(rows[5:])]
    whole = module.token_weighted_loss(network, batches)
    losses, tried = module._losses, []

    def limited(model: Any, loss: Any, part: Any, *more: Any) -> Any:
        tried.append(len(part))
        if len(part) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.")
        return losses(model, loss, part, *more)

    monkeypatch.setattr(module, "_losses", limited)
    said: list[str] = []
    divided = module.token_weighted_loss(network, batches, fitting=Fitting(said.append))
    assert divided[0] == pytest.approx(whole[0], rel=1e-6)
    assert divided[1] == whole[1]
    assert tried == {1: [5, 2, *[1] * 8], 3: [5, 2, 2, 1, 2, 1]}[most]
    assert ["with 5 rows" in said[0], len(said)] == [True, 2 if most == 1 else 1]


def test_before_an_evaluation_that_no_memory_holds_ends_the_attempt_the_steps_are_saved(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training import evaluations

    def never(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(evaluations, "token_weighted_loss", never)
    stage = {**FINETUNE, "eval_steps": 2, "save_steps": 100, "max_steps": 5}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    with pytest.raises(MemoryError):
        run_stage(ctx)
    assert (ctx.phase_name, [path.name for path in ctx.checkpoints.iterdir()]) == ("evaluating", ["step-2"])


def test_memory_that_gradient_checkpointing_saves_does_not_run_out_with_it(tmp_path: Path, tokens: Path) -> None:
    fault = {"memory_limit": {"rows": 1, "checkpointing": True}}
    stage = {**PRETRAIN, "max_steps": 2, "gradient_checkpointing": True}
    assert run_stage(context(tmp_path, stage, {"data": tokens}, test_faults=fault)) is not None
