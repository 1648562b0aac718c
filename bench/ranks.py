"""Compares a pretraining's step in two processes with a bare loop over DDP: same model, batches and optimizer.

Both run in the same two processes, in turn, so a loaded machine slows both. There are two models: what the engine adds
to a step is the same for both, and weighs less in the larger one.
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
SIZES: dict[str, dict[str, int]] = {
    "2 layers of 256": {},
    "4 layers of 512": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    },
}
"""Models by their words, as fields that differ from those of the bench of one process."""
_TIMED = ("wall", "cpu")


def measure() -> list[Row]:
    """Seconds of a step in the engine and in a bare loop, over two processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        subprocess.run([*command, "-m", "bench.ranks", folder], check=True, env=env, timeout=1800)
        found = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    rows = []
    for size in SIZES:
        how = f"{RANKS} processes of {BATCH} x {LENGTH} tokens, {size}, one thread each, DDP over gloo"
        for timed in _TIMED:
            # CPU of all processes together; each waits for the other, so their wall times are the same.
            per_round = {
                way: [sum(rank[size][way][timed][number] for rank in found) / RANKS for number in range(ROUNDS)]
                for way in ("engine", "bare")
            }
            engine, bare = min(per_round["engine"]), min(per_round["bare"])
            middle = sorted(b / e for b, e in zip(per_round["bare"], per_round["engine"], strict=True))[ROUNDS // 2]
            unit, name = "ms" if timed == "wall" else "ms CPU", f"two processes, {size}"
            rows += [
                Row(f"{name}: engine step, {timed}", engine * 1e3, unit, how),
                Row(f"{name}: bare loop's step, {timed}", bare * 1e3, unit, "only forward, backward, clip, step"),
                Row(f"{name}: speed of the engine, {timed}", bare / engine, "x", "bare / engine, best of both"),
                Row(f"{name}: speed of the engine, {timed}, median", middle, "x", "bare / engine of the same round"),
            ]
    return rows


def _in_a_rank(folder: Path) -> None:
    import torch

    from engines.world import world

    torch.set_num_threads(1)
    here = world()
    here.connect()
    batches = torch.randint(5, VOCAB, (STEPS * BATCH * RANKS, LENGTH), generator=torch.Generator().manual_seed(1))
    taken: dict[str, dict[str, dict[str, list[float]]]] = {
        size: {way: {timed: [] for timed in _TIMED} for way in ("engine", "bare")} for size in SIZES
    }
    for number in range(ROUNDS):
        for size, fields in SIZES.items():
            for way, run in (("bare", _bare), ("engine", _engine)):
                here.barrier()
                for timed, seconds in zip(_TIMED, run(batches, here.rank, fields), strict=True):
                    taken[size][way][timed].append(seconds)
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


def _bare(batches: Any, rank: int, fields: dict[str, int]) -> tuple[float, float]:
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model: Any = DistributedDataParallel(model_of("windows", fields), gradient_as_bucket_view=True)
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


def _engine(batches: Any, _rank: int, fields: dict[str, int]) -> tuple[float, float]:
    from engines.data.windows import collate_windows
    from engines.training.session import Session
    from engines.training.task import Task
    from engines.world import world
    from tests.stage_context import make_context

    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(Path(folder), {**STAGE, **fields, "launch": {"processes": RANKS, "strategy": "ddp"}})
        context.world = world()
        session = Session(
            context,
            Task(
                model=model_of("windows", fields),
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
