"""What of a training differs between its processes: their random numbers, and which of them measured what."""

from __future__ import annotations

import math
from collections.abc import Sequence

from transformers import set_seed

from engines.world import World


def seed_process(seed: int, step: int, world: World) -> None:
    """Let each process but the first draw random numbers of its own from here on: dropout differs between rows.

    The first one draws what one process alone would draw. A checkpoint's states replace these where it has them.

    Args:
        seed: of the stage.
        step: steps done before this attempt: a process that a resume adds does not repeat what others drew.
        world: the processes.
    """
    if world.rank > 0:
        set_seed((seed + 1_000_003 * world.rank + step) % (1 << 32))


def of_one_process(losses: Sequence[float]) -> str:
    """Words about the processes whose part of a loss is not finite; empty where all are or none is."""
    bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad or len(bad) == len(losses):
        return ""
    return f", from rank {', '.join(map(str, bad))} of {len(losses)}"
