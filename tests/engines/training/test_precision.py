"""Number formats: bfloat16 where the machine has it, float32 for what is trained; a resume keeps its checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.manifest import manifest_sha256, read_manifest
from engines.context import ResumePoint
from engines.events.results import Evaluated
from engines.events.writers import Warned
from engines.processor import bfloat16_instructions
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, weights_sha256

pytestmark = pytest.mark.torch

STAGE = {name: value for name, value in FINETUNE.items() if name != "bf16"} | {"max_steps": 4, "eval_steps": 4}


def as_if_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    from engines.training import precision

    monkeypatch.setattr(precision, "native", lambda: native)


def recorded(ctx: Any, step: int) -> dict[str, str]:
    found: dict[str, str] = read_manifest(ctx.checkpoints / f"step-{step}")["precision"]
    return found


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", "AMX"),
        ("flags\t\t: fpu avx512f avx512_bf16", "AVX-512 BF16"),
        ("flags\t\t: fpu avx2 avx512f", ""),
        ("Features\t: fp asimd i8mm bf16", "Arm BF16"),
        ("", ""),
    ],
)
def test_the_processors_own_description_decides(flags: str, name: str) -> None:
    assert bfloat16_instructions(f"processor\t: 0\n{flags}\n") == name


@pytest.mark.parametrize(
    ("bf16", "instructions", "words"),
    [
        (None, "AMX", "bfloat16, by AMX"),
        (None, "", "float32: the processor has no instructions for bfloat16"),
        (False, "AMX", "float32, by bf16"),
        (True, "", "bfloat16, by bf16"),
    ],
)
def test_the_plan_says_the_precision(
    bf16: bool | None, instructions: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cockpit.planning import stages

    monkeypatch.setattr(stages, "native_bfloat16", lambda: instructions)
    assert stages.precision_words(bf16) == words


def test_by_default_an_adapter_computes_in_bfloat16_only_where_the_machine_does(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": model, "data": messages}
    losses = {}
    for native in (True, False):
        as_if_native(monkeypatch, native)
        ctx = context(tmp_path / str(native), STAGE, inputs)
        run_stage(ctx)
        kind = "bfloat16" if native else "float32"
        assert recorded(ctx, 4) == {"compute": kind, "frozen_weights": kind}
        losses[native] = of_kind(ctx, Evaluated)[-1].loss or 0.0
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.01)


def test_an_adapters_weights_stay_float32_over_a_bfloat16_base(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    as_if_native(monkeypatch, True)
    ctx = context(tmp_path, STAGE, {"model": model, "data": messages})
    run_stage(ctx)
    kinds = {str(tensor.dtype) for tensor in load_file(ctx.out / "adapter_model.safetensors").values()}
    assert kinds == {"torch.float32"}


def test_a_resume_keeps_the_checkpoints_precision_on_another_machine(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": model, "data": messages}
    as_if_native(monkeypatch, True)
    whole = context(tmp_path, STAGE, inputs)
    run_stage(whole)
    as_if_native(monkeypatch, False)
    again = context(tmp_path, STAGE, inputs, attempt=2, resume=resume_point(whole, 3))
    run_stage(again)
    assert trajectory(again, 2) == trajectory(whole, 1, after=3)
    assert weights_sha256(again.out) == weights_sha256(whole.out)
    [warning] = of_kind(again, Warned)
    assert "which this machine emulates" in warning.message


def test_a_checkpoint_of_an_older_version_continues_as_it_was_trained(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say its precision: products followed the field, and weights of a float32 file were float32."""
    from engines.training.precision import Precision, precision_of_adapter

    as_if_native(monkeypatch, True)
    stage = {**STAGE, "bf16": True}
    whole = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(whole)
    path = whole.checkpoints / "step-3"
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["precision"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    point = ResumePoint(1, 3, path, manifest_sha256(path))
    again = context(tmp_path, stage, {"model": model, "data": messages}, attempt=2, resume=point)
    assert precision_of_adapter(again, stored_narrow=False) == Precision(bf16=True, base="float32")
    assert precision_of_adapter(again, stored_narrow=True) == Precision(bf16=True, base="bfloat16")
