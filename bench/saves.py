"""Compares how long a training waits for a checkpoint: written beside the next steps, and written before them.

Two trainings of one model, in turns: in one process, and over two with FSDP2, where each writes its shard. The first
save of a training takes new memory, which the others use again: it is a figure of its own. After the last save comes no
update, for which the training could wait: it does not count. A copy beside the next step may make that step longer, so
its length is measured too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.rows import Row

ROUNDS = 3
SAVES = 6
RANKS = 2
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


@dataclass
class Measured:
    """Seconds of one training, by save or step.

    Attributes:
        stalls: for which it waited for each save, without the save before.
        waited: for the saves before, in all.
        beside: of the steps right after a save.
        steps: of the others.
        bytes: of the last checkpoint.
    """

    stalls: list[float]
    waited: float
    beside: list[float]
    steps: list[float]
    bytes: int


def measure() -> list[Row]:
    """Seconds for which a training waits for a save, and bytes of a checkpoint."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "single").mkdir()
        _rounds(folder / "single", processes=1)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        (folder / "ranks").mkdir()
        subprocess.run([*command, "-m", "bench.saves", str(folder / "ranks")], check=True, timeout=1800)
        return [
            *_rows("", _read(folder / "single"), "one process"),
            *_rows(f"{RANKS} ranks: ", _read(folder / "ranks"), f"{RANKS} processes, fsdp2, a shard each"),
        ]


def _rows(prefix: str, found: dict[bool, list[Measured]], how: str) -> list[Row]:
    stalls = {way: [seconds for one in all_of for seconds in one.stalls[1:-1]] for way, all_of in found.items()}
    firsts = {way: median(one.stalls[0] for one in all_of) for way, all_of in found.items()}
    steps = median(seconds for all_of in found.values() for one in all_of for seconds in one.steps)
    beside = median(seconds for one in found[True] for seconds in one.beside)
    waits, copies = median(stalls[False]), median(stalls[True])
    how = f"median of {len(stalls[True])} saves of {found[True][-1].bytes / 2**20:.0f} MiB, {how}, one thread each"
    return [
        Row(f"{prefix}a save that the training waits for", waits, "s", how),
        Row(f"{prefix}the wait for an asynchronous save", copies, "s", how),
        Row(f"{prefix}stall, ratio", copies / waits, "x", "asynchronous / synchronous, rounds interleaved"),
        Row(f"{prefix}stall of the first save, ratio", firsts[True] / firsts[False], "x", "memory is new"),
        Row(f"{prefix}a step", steps, "s", "median, without those right after a save"),
        Row(f"{prefix}the step beside a copy", beside, "s", "median; the wait before its update is in it"),
        Row(f"{prefix}longer step / save", max(beside - steps, 0.0) / waits, "x", "(beside - step) / synchronous save"),
        Row(
            f"{prefix}waits for the save before",
            sum(one.waited for one in found[True]),
            "s",
            f"in all, {STEPS_BETWEEN} steps between two saves",
        ),
    ]


def _rounds(folder: Path, *, processes: int) -> None:
    """Train in turns, and write what was measured into the folder."""
    import torch

    torch.set_num_threads(1)
    for number in range(ROUNDS):
        for async_save in (True, False):
            found = _training(folder / f"{number}-{async_save}", async_save=async_save, processes=processes)
            if found is not None:
                (folder / f"{number}-{async_save}.json").write_text(json.dumps(asdict(found)))
        sys.stderr.write(f"  round {number + 1} of {ROUNDS}\n")


def _read(folder: Path) -> dict[bool, list[Measured]]:
    return {
        way: [Measured(**json.loads((folder / f"{number}-{way}.json").read_text())) for number in range(ROUNDS)]
        for way in (True, False)
    }


def _training(folder: Path, *, async_save: bool, processes: int) -> Measured | None:
    """One training; None in processes that are not the first."""
    from engines.ranks.own import RankWriter
    from engines.run_dir.paths import RunDir
    from engines.world import world
    from tests.engines.training.attempts import run_stage
    from tests.engines.training.tiny import write_tokens
    from tests.stage_context import make_context

    here = world()
    own = folder / f"rank{here.rank}"
    data = write_tokens(own / "tokens", {"train": 64 * 2 * processes * SAVES * STEPS_BETWEEN + 1, "val": 100})
    launch = {"launch": {"processes": processes, "strategy": "fsdp2"}} if processes > 1 else {}
    ctx = make_context(own / "run", {**STAGE, **launch, "async_save": async_save}, inputs={"data": data})
    ctx.world = here
    if not here.is_first:
        ctx.writer.close()
        run = RunDir(ctx.run_root)
        ctx.writer = RankWriter(run, stage=ctx.stage_name, attempt=ctx.attempt, rank=here.rank, launch=1)
    run_stage(ctx)
    found = _measured(ctx) if here.is_first else None
    ctx.writer.close()
    here.barrier()
    shutil.rmtree(own)
    return found


def _measured(ctx: Any) -> Measured:
    from engines.events.steps import CheckpointCommitted, CheckpointStaged, Step
    from tests.engines.training.attempts import of_kind

    committed = of_kind(ctx, CheckpointCommitted)
    waits = {event.step: event.waited_s for event in of_kind(ctx, CheckpointStaged)}
    after = {event.step + 1 for event in committed}
    steps = [event for event in of_kind(ctx, Step) if event.step > STEPS_BETWEEN]  # not those that warm up
    return Measured(
        stalls=[(event.stall_s or 0.0) - waits.get(event.step, 0.0) for event in committed],
        waited=sum(waits.values()),
        beside=[event.step_s for event in steps if event.step in after],
        steps=[event.step_s for event in steps if event.step not in after],
        bytes=committed[-1].bytes,
    )


def _in_a_rank(folder: Path) -> None:
    from engines.world import world

    here = world()
    here.connect()
    _rounds(folder, processes=here.size)
    os._exit(0)


if __name__ == "__main__":
    _in_a_rank(Path(sys.argv[1]))
