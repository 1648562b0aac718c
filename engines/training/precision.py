"""The number formats of a training: what it computes in, and how wide weights are that it does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from engines.artifacts.manifest import read_manifest
from engines.context import StageContext
from engines.forward.block_attention import is_faster
from engines.forward.rows_attention import OWN
from engines.processor import native_bfloat16
from engines.training.beginning import continued_checkpoint
from recipes.problems import OperatorError
from recipes.stages.kind import backend_of
from recipes.stages.launch.fields import FSDP2
from recipes.stages.training import TrainingFields

FLOAT32, BFLOAT16, FLOAT16 = "float32", "bfloat16", "float16"
TYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
FIRST_FP16 = (7, 0)
"""The first compute capability whose tensor cores compute in float16 (Volta)."""
FIRST_TF32 = (8, 0)
"""The first compute capability with TF32 (Ampere), as in NVIDIA's CUDA C++ Programming Guide."""
RECORD = "precision"
"""The key of a checkpoint's manifest with `as_record`."""

KERNELS = "kernels"
"""The key of a checkpoint's manifest with what `kernels` returns."""
ATTENTION = "attention of rows in one sequence"
"""The key of `kernels` for what computes it: torch's `sdpa`, which it was before checkpoints recorded it, or blocks."""
IN_BLOCKS = "blocks"


@dataclass(frozen=True)
class Precision:
    """Weights that are trained are always float32.

    Attributes:
        bf16: matrix products are computed in bfloat16 (autocast).
        fp16: they are computed in float16, with a scaled loss.
        base: type of the weights that are not trained, a key of `TYPES`.
    """

    bf16: bool
    base: str = FLOAT32
    fp16: bool = False

    @property
    def narrow(self) -> bool:
        """Whether weights that are not trained have 16 bits."""
        return self.base != FLOAT32


def precision_of_adapter(ctx: StageContext[TrainingFields], *, stored_narrow: bool) -> Precision:
    """The precision of a training of an existing model: bfloat16 where this machine computes in it natively, float16
    with a scaled loss on a GPU that computes only in that.

    A frozen weight gains nothing from a wider format than products are computed in. A resume keeps the precision of its
    checkpoint, on any machine: another one would change what the same weights compute.

    Args:
        ctx: the stage; its fields `bf16`, `fp16` and `base_dtype` decide if they are set.
        stored_narrow: the base model's files are bfloat16.
    """
    point = ctx.resume or continued_checkpoint(ctx)
    if point is not None:
        return _of_checkpoint(ctx, read_manifest(point.path), stored_narrow=stored_narrow)
    asked = getattr(ctx.stage, "base_dtype", "auto")
    if computes_in_float16(ctx.stage, only_that=only_float16()):
        return Precision(False, FLOAT16 if asked == "auto" else asked, fp16=True)
    automatic = native() or asked in {BFLOAT16, FLOAT16}  # products cannot be wider than both of their factors
    wanted = automatic if ctx.stage.bf16 is None else ctx.stage.bf16
    return Precision(wanted, (BFLOAT16 if wanted else FLOAT32) if asked == "auto" else asked)


def computes_in_float16(stage: TrainingFields, *, only_that: bool) -> bool:
    """Whether a stage that trains an existing model computes in float16.

    Args:
        stage: its fields; `fp16` decides if it is set.
        only_that: the GPU computes in float16 and not in bfloat16.
    """
    if stage.fp16 is not None:
        return stage.fp16
    asked = getattr(stage, "base_dtype", "auto")
    undecided = stage.bf16 is None and asked in {"auto", FLOAT16} and backend_of(stage) == "hf"
    return undecided and only_that and stage.launch.strategy != FSDP2


def only_float16() -> bool:
    """Whether the GPU of this process computes fast in float16, and not in bfloat16: compute capability 7.0 to 7.5."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= FIRST_FP16 and not native()


def autocast(device: torch.device, *, bf16: bool, fp16: bool) -> torch.autocast:
    """The context in which products have 16 bits; one that changes nothing without both."""
    return torch.autocast(device.type, dtype=torch.float16 if fp16 else torch.bfloat16, enabled=bf16 or fp16)


def require_bf16(bf16: bool | None) -> None:
    """Refuse to compute in bfloat16 on a GPU that only emulates it: torch would, many times slower.

    Raises:
        OperatorError: the GPU has no bfloat16.
    """
    if bf16 and torch.cuda.is_available() and not native():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        raise OperatorError(
            f"bf16 — {properties.name} (compute capability {properties.major}.{properties.minor}) does not compute in"
            " bfloat16, which needs 8.0",
            "set fp16 = true, or bf16 = false",
        )


def matmul_precision(wanted: str) -> str:
    """The precision of products of float32 matrices, as torch names it, by the field `float32_matmul_precision`."""
    if wanted != "auto":
        return wanted
    has_tf32 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= FIRST_TF32
    return "high" if has_tf32 else "highest"


def native() -> bool:
    """Whether the device of this process computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(native_bfloat16()) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def keep_input_types(model: torch.nn.Module) -> None:
    """Let PEFT's layers take their input as it is: under autocast, products have the right type anyway.

    PEFT would make a float32 copy of each layer's input for its float32 adapters, keep it for the backward pass, and
    autocast would make it bfloat16 again: the same products with an eighth more memory. DoRA computes norms in the type
    of the input, so its layers keep the copy.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "cast_input_dtype_enabled") and not any(getattr(layer, "use_dora", {}).values()):
            layer.cast_input_dtype_enabled = False


def as_record(model: torch.nn.Module, *, bf16: bool, fp16: bool) -> dict[str, str]:
    """What a checkpoint records of a training's precision."""
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    return {
        "compute": BFLOAT16 if bf16 else FLOAT16 if fp16 else FLOAT32,
        "frozen_weights": next((name for name in (BFLOAT16, FLOAT16) if TYPES[name] in frozen), FLOAT32),
    }


def kernels(stage: TrainingFields, *, bf16: bool) -> dict[str, Any]:
    """What a checkpoint records of the kernels of its training: they decide how sums are rounded.

    Args:
        stage: its fields.
        bf16: it computes in bfloat16.
    """
    in_blocks = bf16 and not torch.cuda.is_available() and is_faster()
    return {
        ATTENTION: IN_BLOCKS if in_blocks else OWN,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch_compile": stage.torch_compile,
        "use_liger_kernel": stage.use_liger_kernel,
    }


def _of_checkpoint(ctx: StageContext[TrainingFields], manifest: dict[str, Any], *, stored_narrow: bool) -> Precision:
    recorded = manifest.get(RECORD)
    if not isinstance(recorded, dict):  # of a version that computed in float32 unless the recipe set bf16
        bf16 = bool(ctx.stage.bf16)
        return Precision(bf16, BFLOAT16 if bf16 and stored_narrow else FLOAT32)
    base = recorded.get("frozen_weights")
    compute = recorded.get("compute")
    found = Precision(compute == BFLOAT16, base if base in TYPES else FLOAT32, fp16=compute == FLOAT16)
    if found.bf16 and not native():
        ctx.warn(
            "the checkpoint's training computes in bfloat16, which this machine emulates: steps take longer; a new"
            " training with bf16 = false computes in float32"
        )
    return found
