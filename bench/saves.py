"""Compares how long a training waits for a checkpoint: written beside the next steps, and written before them.

Two trainings of one model in one process, in turns. The first save of a training takes new memory, which the others
use again: it is a figure of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.rows import Row

ROUNDS = 3
SAVES = 5
STEPS_BETWEEN = 4
STAGE = {
    "name": "base",
    "kind": "pretrain",
    "data": "data",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_length": 64,
    "per_device_train_batch_size": 2,
    "max_steps": SAVES * STEPS_BETWEEN,
    "learning_rate": 1e-4,
    "save_steps": STEPS_BETWEEN,
    "save_total_limit": 1,
    "bf16": False,
}


def measure() -> list[Row]:
    """Seconds for which a training waits for a save, and bytes of a checkpoint."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch

    torch.set_num_threads(1)
    stalls: dict[bool, list[float]] = {True: [], False: []}
    firsts: dict[bool, list[float]] = {True: [], False: []}
    waited, size = 0.0, 0
    for number in range(ROUNDS):
        for async_save in (True, False):
            found, waits, size = _saves(async_save=async_save)
            firsts[async_save].append(found[0])
            stalls[async_save] += found[1:]
            waited += waits
        sys.stderr.write(f"  round {number + 1} of {ROUNDS}\n")
    beside, before = median(stalls[True]), median(stalls[False])
    how = f"median of {len(stalls[True])} saves of {size / 2**20:.0f} MiB, one thread"
    return [
        Row("a save that the training waits for", before, "s", how),
        Row("the copy of an asynchronous save", beside, "s", how),
        Row("stall, ratio", beside / before, "x", "asynchronous / synchronous, rounds interleaved"),
        Row("stall of the first save, ratio", median(firsts[True]) / median(firsts[False]), "x", "memory is new"),
        Row("waits for the save before", waited, "s", f"in all, {STEPS_BETWEEN} steps between two saves"),
    ]


def _saves(*, async_save: bool) -> tuple[list[float], float, int]:
    """The stalls of one training's saves, what they waited for the one before, and the bytes of one."""
    from engines.events import CheckpointCommitted, CheckpointStaged
    from tests.engines.training.attempts import of_kind, run_stage
    from tests.engines.training.tiny import write_tokens
    from tests.stage_context import make_context

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_tokens(folder / "tokens", {"train": 64 * 2 * SAVES * STEPS_BETWEEN + 1, "val": 100})
        ctx = make_context(folder / "run", {**STAGE, "async_save": async_save}, inputs={"data": data})
        run_stage(ctx)
        committed = of_kind(ctx, CheckpointCommitted)
        waits = {event.step: event.waited_s for event in of_kind(ctx, CheckpointStaged)}
        stalls = [(event.stall_s or 0.0) - waits.get(event.step, 0.0) for event in committed]
        return stalls, sum(waits.values()), committed[-1].bytes
