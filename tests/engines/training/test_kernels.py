"""How a training computes: fields that select kernels, what checkpoints record of them, and what a machine lacks.

Torch's answers about a GPU are stood in for: no test here runs on CUDA.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines.artifacts.manifest import manifest_sha256, read_manifest
from engines.context import ResumePoint
from engines.events.attempts import Phase
from engines.events.writers import Warned
from engines.forward import compiling
from engines.training import devices, precision
from engines.training.arguments import training_arguments
from engines.training.precision import matmul_precision, require_bf16
from recipes.problems import OperatorError
from recipes.stages.pretrain import PretrainStage
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import FINETUNE, PRETRAIN

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _torch_as_before() -> Any:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, bf16: bool) -> None:
    """As if torch had a GPU."""
    found = SimpleNamespace(name="Tesla T4", major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(precision, "native", lambda: bf16)


@pytest.mark.parametrize(
    ("capability", "wanted", "found"),
    [((9, 0), "auto", "high"), ((8, 0), "auto", "high"), ((7, 5), "auto", "highest"), ((9, 0), "highest", "highest")],
)
def test_tf32_is_used_where_the_gpu_has_it_unless_the_recipe_says_otherwise(
    capability: tuple[int, int], wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, capability, bf16=True)
    assert matmul_precision(wanted) == found


def test_on_the_cpu_float32_products_are_float32() -> None:
    assert matmul_precision("auto") == "highest"


def test_a_gpu_that_emulates_bfloat16_is_refused_with_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    card(monkeypatch, (7, 5), bf16=False)
    with pytest.raises(OperatorError, match=r"bf16 — Tesla T4 \(compute capability 7\.5\)") as refused:
        require_bf16(True)
    assert refused.value.hint == "set fp16 = true, or bf16 = false"
    require_bf16(None)
    card(monkeypatch, (8, 0), bf16=True)
    require_bf16(True)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_the_base_keeps_the_type_that_the_recipe_asks_for(
    tmp_path: Path, model: Path, messages: Path, kind: str
) -> None:
    stage = {name: value for name, value in FINETUNE.items() if name != "bf16"} | {"max_steps": 2, "base_dtype": kind}
    if kind == "float32":
        stage["bf16"] = True
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    assert run_stage(ctx) is not None
    assert read_manifest(ctx.checkpoints / "step-2")["precision"] == {"compute": "bfloat16", "frozen_weights": kind}
    [said] = [phase.name for phase in of_kind(ctx, Phase) if "on cpu" in phase.name]
    assert f"frozen weights in {kind}" in said


def test_a_resume_with_other_kernels_says_which(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "max_steps": 3}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    file = ctx.checkpoints / "step-3" / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["kernels"] == {
        "attention of rows in one sequence": "sdpa",
        "float32_matmul_precision": "highest",
        "deterministic": False,
        "torch_compile": False,
        "use_liger_kernel": False,
    }
    file.write_text(json.dumps({**manifest, "kernels": {**manifest["kernels"], "float32_matmul_precision": "high"}}))
    point = ResumePoint(1, 3, file.parent, manifest_sha256(file.parent))
    again = context(tmp_path, {**stage, "deterministic": True}, {"data": tokens}, attempt=2, resume=point)
    run_stage(again)
    [warning] = [w.message for w in of_kind(again, Warned, 2)]
    assert "float32_matmul_precision was high, now highest" in warning
    assert "deterministic was False, now True" in warning


def test_a_resume_in_bfloat16_of_a_checkpoint_from_before_blocks_says_so(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**PRETRAIN, "max_steps": 1, "bf16": True}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    file = ctx.checkpoints / "step-1" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["kernels"]["attention of rows in one sequence"]
    file.write_text(json.dumps(manifest))
    point = ResumePoint(1, 1, file.parent, manifest_sha256(file.parent))
    monkeypatch.setattr(precision, "is_faster", lambda: True)
    again = context(tmp_path, {**stage, "max_steps": 2}, {"data": tokens}, attempt=2, resume=point)
    run_stage(again)
    [warning] = [w.message for w in of_kind(again, Warned, 2)]
    assert "attention of rows in one sequence was sdpa, now blocks" in warning
    record = read_manifest(again.checkpoints / "step-2")["kernels"]
    assert record["attention of rows in one sequence"] == "blocks"


def test_a_kernel_that_is_not_deterministic_is_named_with_the_field(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training.steps.trainer import EngineTrainer

    def forbidden(*_: Any, **__: Any) -> Any:
        torch.empty(3).put_(torch.tensor([0]), torch.tensor([1.0]), accumulate=False)

    monkeypatch.setattr(EngineTrainer, "training_step", forbidden)
    ctx = context(tmp_path, {**PRETRAIN, "deterministic": True}, {"data": tokens})
    with pytest.raises(OperatorError, match="deterministic — this model needs put_") as refused:
        run_stage(ctx)
    assert refused.value.hint == "set base.deterministic = false"


@pytest.mark.parametrize(
    ("gpus", "cuda", "visible", "words"),
    [
        (1, None, None, "has an NVIDIA GPU, but the engine computes on the CPU: torch"),
        (2, "13.0", "0,1", "has 2 NVIDIA GPUs, but the engine computes on the CPU: the driver is too old"),
        (1, None, "", ""),
        (1, None, "-1", ""),
        (0, None, None, ""),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_said_unless_the_operator_hid_it(
    gpus: int, cuda: str | None, visible: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise RuntimeError("the driver is too old\nsecond line")

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", init)
    said = devices.why_unseen(gpus, visible)
    assert words in said
    assert bool(said) == bool(words)
    assert "second line" not in said


def test_a_training_on_the_cpu_of_a_machine_with_a_gpu_warns(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "nvidia_gpus", lambda: 1)
    ctx = context(tmp_path, {**PRETRAIN, "max_steps": 1}, {"data": tokens})
    run_stage(ctx)
    [warning] = of_kind(ctx, Warned)
    assert "install a CUDA build of torch" in warning.message


def test_liger_needs_a_gpu_and_its_loss_stays_off(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context(tmp_path, {**PRETRAIN, "use_liger_kernel": True}, {"data": tokens})
    with pytest.raises(OperatorError, match="use_liger_kernel — Liger's kernels run on an NVIDIA GPU"):
        run_stage(ctx)
    stage = PretrainStage.model_validate({**PRETRAIN, "use_liger_kernel": True})
    arguments = training_arguments(stage, tmp_path, bf16=False)
    assert arguments.use_liger_kernel is True
    assert arguments.liger_kernel_config == {"cross_entropy": False, "fused_linear_cross_entropy": False}


def test_without_a_compiler_torch_compile_is_refused(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    ctx = context(tmp_path, {**PRETRAIN, "torch_compile": True}, {"data": tokens})
    with pytest.raises(OperatorError, match=r"torch_compile — needs a C\+\+ compiler"):
        run_stage(ctx)


def test_compiled_code_is_kept_where_no_other_user_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling, "cpp_compiler", lambda: "/usr/bin/g++")
    compiling.require_compiler()
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # is removed when the test ends
    assert folder.is_relative_to(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_model_without_decoder_layers_is_not_compiled_in_silence() -> None:
    with pytest.raises(OperatorError, match="torch_compile — Linear has no decoder layers"):
        compiling.compile_layers(torch.nn.Linear(2, 2), same_lengths=True)


COMPILED = """
import json, sys
from pathlib import Path
from tests.engines.training.attempts import context, resume_point, run_stage, trajectory
from engines.forward import compiling
stage, inputs, folder, step = json.loads(sys.argv[1])
inputs = {name: Path(path) for name, path in inputs.items()}
first = context(Path(folder), stage, inputs)
attempt = 2 if step else 1
ctx = context(Path(folder), stage, inputs, attempt=2, resume=resume_point(first, step)) if step else first
assert run_stage(ctx) is not None
assert compiling._Present.compiled is stage["torch_compile"]
print(json.dumps(trajectory(ctx, attempt)))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_compiled_layers_have_the_same_losses_and_a_resume_in_another_process_is_exact(
    tmp_path: Path, tokens: Path, model: Path, messages: Path, kind: str
) -> None:
    base: dict[str, Any] = {**PRETRAIN, "attention_dropout": 0.0}
    inputs = {"data": str(tokens)}
    if kind == "finetune":
        base, inputs = {**FINETUNE, "lora_dropout": 0.0}, {"model": str(model), "data": str(messages)}

    def run(compiled: bool, step: int = 0) -> list[Any]:
        stage = {**base, "torch_compile": compiled, "eval_steps": 4}
        asked = json.dumps([stage, inputs, str(tmp_path / str(compiled)), step])
        done = subprocess.run(
            [sys.executable, "-c", COMPILED, asked], capture_output=True, text=True, check=False, cwd=Path.cwd()
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    plain, compiled = run(False), run(True)
    for before, after in zip(plain, compiled, strict=True):
        assert float.fromhex(after[1]) == pytest.approx(float.fromhex(before[1]), rel=1e-5)
        assert float.fromhex(after[2]) == pytest.approx(float.fromhex(before[2]), rel=1e-4)
    assert run(True, step=3) == compiled[3:]
