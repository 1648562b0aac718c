"""A checkpoint that is being written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.training.saves.parts import Parts
from engines.training.saves.sharded_parts import ShardedParts


@dataclass(frozen=True)
class Save:
    """A checkpoint that is being written: the parts of one step, and what its manifest says.

    Attributes:
        finite: every step since the checkpoint before was finite, and the newest loss is no begin of a spike.
        fields: of the manifest, but for what the parts decide.
        began_s: when the training began to wait for it.
        stall_s: seconds for which the training waited for its copy; None while it waits for the whole save.
    """

    step: int
    draft: Path
    final: Path
    parts: Parts | ShardedParts
    model: Any
    finite: bool
    eval_loss: float | None
    position: dict[str, Any]
    fields: dict[str, Any]
    evaluation_follows: bool
    rng_sha256: str
    began_s: float
    stall_s: float | None = None
