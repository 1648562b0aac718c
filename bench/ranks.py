"""Compares a pretraining's step in two processes with a bare loop over DDP: same model, batches and optimizer.

Both run in the same two processes, in turn, so a loaded machine slows both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.rows import Row
from bench.steps import BATCH, LENGTH, STAGE, STEPS, VOCAB, WARM_STEPS, Rows, model_of

RANKS = 2
ROUNDS = 5
_TIMED = ("wall", "cpu")


def measure() -> list[Row]:
    """Seconds of a step in the engine and in a bare loop, over two processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        subprocess.run([*command, "-m", "bench.ranks", folder], check=True, env=env, timeout=1800)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    how = f"{RANKS} processes of {BATCH} x {LENGTH} tokens, 2 layers of 256, one thread each, DDP over gloo"
    rows = []
    for timed in _TIMED:
        # CPU of all processes together; each waits for the other, so their wall times are the same.
        per_round = {
            way: [sum(rank[way][timed][number] for rank in found) / RANKS for number in range(ROUNDS)]
            for way in ("engine", "bare")
        }
        engine, bare = min(per_round["engine"]), min(per_round["bare"])
        unit = "ms" if timed == "wall" else "ms CPU"
        rows += [
            Row(f"two processes: engine step, {timed}", engine * 1e3, unit, how),
            Row(f"two processes: bare loop's step, {timed}", bare * 1e3, unit, "only forward, backward, clip, step"),
            Row(
                f"two processes: speed of the engine, {timed}", bare / engine, "x", "bare / engine, rounds interleaved"
            ),
        ]
    return rows


def _in_a_rank(folder: Path) -> None:
    import torch

    from engines.world import world

    torch.set_num_threads(1)
    here = world()
    here.connect()
    batches = torch.randint(5, VOCAB, (STEPS * BATCH * RANKS, LENGTH), generator=torch.Generator().manual_seed(1))
    taken: dict[str, dict[str, list[float]]] = {way: {timed: [] for timed in _TIMED} for way in ("engine", "bare")}
    for number in range(ROUNDS):
        for way, run in (("bare", _bare), ("engine", _engine)):
            here.barrier()
            for timed, seconds in zip(_TIMED, run(batches, here.rank), strict=True):
                taken[way][timed].append(seconds)
        if here.is_first:
            sys.stderr.write(f"  round {number + 1} of {ROUNDS}\n")
    (folder / f"{here.rank}.json").write_text(json.dumps(taken))
    here.barrier()
    os._exit(0)


def _typical(marks: list[tuple[float, float]]) -> tuple[float, float]:
    """The median wall seconds and the mean CPU seconds of the steps after the first ones."""
    timed = marks[WARM_STEPS:]
    walls = sorted(b[0] - a[0] for a, b in pairwise(timed))
    return walls[len(walls) // 2], (timed[-1][1] - timed[0][1]) / (len(timed) - 1)


def _bare(batches: Any, rank: int) -> tuple[float, float]:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model: Any = DistributedDataParallel(model_of("windows"), gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / STEPS)
    marks = []
    for step in range(STEPS):
        marks.append((time.perf_counter(), time.process_time()))
        rows = batches[(step * RANKS + rank) * BATCH :][:BATCH]
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return _typical(marks)


def _engine(batches: Any, _rank: int) -> tuple[float, float]:
    from engines.data.windows import collate_windows
    from engines.training.session import Session
    from engines.training.task import Task
    from engines.world import world
    from tests.stage_context import make_context

    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(Path(folder), {**STAGE, "launch": {"processes": RANKS, "strategy": "ddp"}})
        context.world = world()
        session = Session(
            context,
            Task(
                model=model_of("windows"),
                dataset=Rows(batches, lambda: marks.append((time.perf_counter(), time.process_time())), apart=False),
                collate=collate_windows,
                examples=len(batches),
                save_tokenizer=lambda _: None,
            ),
        )
        session.run()
        context.writer.close()
    return _typical(marks)


if __name__ == "__main__":
    _in_a_rank(Path(sys.argv[1]))
