"""A training in float16 scales its loss: what it computes, which steps it leaves out, and that it resumes exactly.

On a processor, torch has the autocast and the scaler that it has on a GPU, and accelerate's code is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from engines.artifacts.manifest import read_manifest
from engines.context import GuardTrippedError
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.events.writers import Warned
from engines.pretrain.stage import run as pretrain
from engines.training import precision
from engines.training.optimizers import loss_scale
from engines.training.precision import Precision, computes_in_float16
from recipes.stages.finetune import FinetuneStage
from recipes.stages.pretrain import PretrainStage
from tests.engines.training import tiny
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage

pytestmark = pytest.mark.torch

PRETRAIN: dict[str, Any] = {**tiny.PRETRAIN, "fp16": True, "max_steps": 8, "save_steps": 4, "save_total_limit": 9}
OVERFLOWS = 2.0**26
"""A first scale at which gradients of the tiny model overflow float16."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokens(tmp_path_factory.mktemp("tokens"), {"train": 16 * 42 + 3})


def facts(step: Step) -> Any:
    return step.step, step.loss, step.grad_norm, step.metrics["loss_scale"]


def steps(ctx: Any) -> list[Step]:
    return list(of_kind(ctx, Step))


def test_losses_and_norms_are_those_of_float32_up_to_rounding(tmp_path: Path, tokens: Path) -> None:
    half = context(tmp_path / "half", PRETRAIN, {"data": tokens})
    run_stage(half)
    whole = context(tmp_path / "whole", {**PRETRAIN, "fp16": False}, {"data": tokens})
    run_stage(whole)
    for mine, other in zip(steps(half), steps(whole), strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-3)
        assert mine.loss != other.loss
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=2e-2)
        assert (mine.metrics["loss_scale"], mine.learning_rate) == (loss_scale.FIRST_SCALE, other.learning_rate)
        assert "loss_scale" not in other.metrics
    (first, *_) = of_kind(half, CheckpointCommitted)
    found = read_manifest(half.checkpoints / f"step-{first.step}")["precision"]
    assert found["compute"] == "float16"


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_a_step_that_overflows_is_left_out_and_said_and_a_resume_continues_bit_for_bit(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", OVERFLOWS)
    stage = {**PRETRAIN, "optim": optim, "max_steps": 12, "save_steps": 2, "save_total_limit": 9}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    all_steps = steps(ctx)
    skipped = [step for step in all_steps if step.grad_norm is None]
    assert 4 <= len(skipped) < 12
    assert [step.step for step in skipped[:4]] == [1, 2, 3, 4]
    scale = OVERFLOWS
    for step in all_steps:
        assert step.metrics["loss_scale"] == scale
        scale /= 2 if step.grad_norm is None else 1
    said = [e.message for e in of_kind(ctx, Warned) if "overflowed float16" in e.message]
    assert len(said) == len(skipped)
    assert said[0].startswith("step 1 changed no weight: a gradient overflowed float16 at loss scale 67108864")
    assert not of_kind(ctx, GuardTripped)
    saved = {e.step: e.healthy for e in of_kind(ctx, CheckpointCommitted)}
    assert all(saved.values())
    assert tiny.weights_sha256(ctx.checkpoints / "step-2") == tiny.weights_sha256(ctx.checkpoints / "step-4")
    assert tiny.weights_sha256(ctx.checkpoints / "step-4") != tiny.weights_sha256(ctx.checkpoints / "step-12")
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(ctx, 4))
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 2.0**3)
    run_stage(again)
    found = [facts(one) for one in steps(again) if one.attempt == 2]
    assert found == [facts(one) for one in all_steps[4:]]


def test_a_gradient_that_is_not_finite_without_a_scale_trips_the_guard(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "FIRST_SCALE", 4.0)
    unscale = torch.amp.GradScaler.unscale_

    def of_infinite(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))
        unscale(scaler, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", of_infinite)
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    with pytest.raises(GuardTrippedError, match="nonfinite_grad_norm at step 3"):
        pretrain(ctx)
    assert [step.grad_norm for step in steps(ctx)] == [None, None, float("inf")]


def test_a_loss_that_is_not_finite_trips_the_guard_as_in_other_formats(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens}, test_faults={"nan_loss": {"step": 3}})
    with pytest.raises(GuardTrippedError, match="nonfinite_loss at step 3"):
        pretrain(ctx)


def test_an_adapter_over_a_float16_base_is_trained_and_resumed(tmp_path: Path) -> None:
    inputs = {"model": tiny.write_model(tmp_path / "model"), "data": tiny.write_messages(tmp_path / "rows")}
    stage = {**tiny.FINETUNE, "fp16": True, "max_steps": 4, "save_steps": 2}
    ctx = context(tmp_path, stage, inputs)
    run_stage(ctx)
    recorded = read_manifest(ctx.checkpoints / "step-2")["precision"]
    assert recorded == {"compute": "float16", "frozen_weights": "float16"}
    again = context(tmp_path, stage, inputs, attempt=2, resume=resume_point(ctx, 2))
    run_stage(again)
    assert [s.loss for s in steps(again) if s.attempt == 2] == [
        s.loss for s in steps(ctx) if s.step > 2 and s.attempt == 1
    ]


LORA = {"name": "t", "kind": "finetune", "model": "m", "data": "d"}


def test_a_gpu_without_bfloat16_trains_an_existing_model_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(capability: tuple[int, int], **fields: Any) -> bool:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(precision, "native", lambda: capability >= (8, 0))
        return computes_in_float16(FinetuneStage.model_validate({**LORA, **fields}), only_that=precision.only_float16())

    assert [chosen(one) for one in ((6, 1), (7, 0), (7, 5), (8, 0), (9, 0))] == [False, True, True, False, False]
    assert not chosen((7, 5), bf16=False)
    assert not chosen((7, 5), fp16=False)
    assert not chosen((7, 5), base_dtype="float32")
    assert chosen((7, 5), base_dtype="float16")
    assert chosen((9, 0), fp16=True)
    assert Precision(bf16=False).fp16 is False


def test_float16_beside_what_it_does_not_fit_is_refused() -> None:
    for fields, words in (
        ({"bf16": True}, "fp16 — products have one format"),
        ({"base_dtype": "bfloat16"}, "base_dtype — fp16 computes in float16"),
        ({"backend": "unsloth"}, "fp16 — backend = unsloth"),
    ):
        with pytest.raises(ValidationError, match=words):
            FinetuneStage.model_validate({**LORA, "fp16": True, **fields})
    pretrain_stage = {**tiny.PRETRAIN, "data": "t", "fp16": True, "launch": {"processes": 2, "strategy": "fsdp2"}}
    with pytest.raises(ValidationError, match="fp16 — parts of weights have no common loss scale"):
        PretrainStage.model_validate(pretrain_stage)
