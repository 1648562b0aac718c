"""The number formats of a training: what it computes in, and how wide weights are that it does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from engines.artifacts.manifest import read_manifest
from engines.context import StageContext
from engines.native_bfloat16 import native_bfloat16
from engines.training.beginning import continued_checkpoint
from recipes.stages.training import TrainingFields

FLOAT32, BFLOAT16 = "float32", "bfloat16"
RECORD = "precision"
"""The key of a checkpoint's manifest with `as_record`."""


@dataclass(frozen=True)
class Precision:
    """Weights that are trained are always float32.

    Attributes:
        bf16: matrix products are computed in bfloat16 (autocast).
        narrow: weights that are not trained are bfloat16.
    """

    bf16: bool
    narrow: bool = False


def precision_of_adapter(ctx: StageContext[TrainingFields], *, stored_narrow: bool) -> Precision:
    """The precision of a training that changes an adapter only: bfloat16 where this machine computes in it natively.

    A frozen weight gains nothing from a wider format than products are computed in. A resume keeps the precision of its
    checkpoint, on any machine: another one would change what the same weights compute.

    Args:
        ctx: the stage; its field `bf16` decides if it is set.
        stored_narrow: the base model's files are bfloat16.
    """
    point = ctx.resume or continued_checkpoint(ctx)
    if point is not None:
        return _of_checkpoint(ctx, read_manifest(point.path), stored_narrow=stored_narrow)
    wanted = native() if ctx.stage.bf16 is None else ctx.stage.bf16
    return Precision(wanted, narrow=wanted)


def native() -> bool:
    """Whether the device of this process computes in bfloat16 natively."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(native_bfloat16()) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def as_record(model: torch.nn.Module, *, bf16: bool) -> dict[str, str]:
    """What a checkpoint records of a training's precision."""
    frozen = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    return {
        "compute": BFLOAT16 if bf16 else FLOAT32,
        "frozen_weights": BFLOAT16 if torch.bfloat16 in frozen else FLOAT32,
    }


def _of_checkpoint(ctx: StageContext[TrainingFields], manifest: dict[str, Any], *, stored_narrow: bool) -> Precision:
    recorded = manifest.get(RECORD)
    if not isinstance(recorded, dict):  # of a version that computed in float32 unless the recipe set bf16
        bf16 = bool(ctx.stage.bf16)
        return Precision(bf16, narrow=bf16 and stored_narrow)
    found = Precision(recorded.get("compute") == BFLOAT16, recorded.get("frozen_weights") == BFLOAT16)
    if found.bf16 and not native():
        ctx.warn(
            "the checkpoint's training computes in bfloat16, which this machine emulates: steps take longer; a new"
            " training with bf16 = false computes in float32"
        )
    return found
