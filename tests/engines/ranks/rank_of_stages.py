"""`python rank_of_stages.py JOBS_JSON FOLDER`: run stages in this rank, one after the other.

A job has `name`, `stage`, `inputs`, and optionally `attempt`, `resume` (the folder of a checkpoint), `faults`, and
`no_evaluation_in`: the rank in which memory holds no evaluation. Ranks have journals of their own, and the checkpoints
of the first one. Each job's record is `FOLDER/NAME.RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.manifest import manifest_sha256, read_manifest
from engines.context import ResumePoint
from engines.journal import read_journal
from engines.ranks.own import RankWriter
from engines.run_dir.paths import RunDir
from engines.world import world
from tests.engines.training.attempts import context
from tests.stage_context import TriedContext


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record of a job: its outcome and its events."""
    here = world()
    own = folder / job["name"] / f"rank{here.rank}"
    inputs = {name: Path(value) for name, value in job["inputs"].items()}
    ctx: TriedContext = context(own, job["stage"], inputs, attempt=job.get("attempt", 1))
    ctx.test_faults, ctx.world = job.get("faults", {}), here
    journal = RunDir(ctx.run_root).journal
    if not here.is_first:
        ctx.writer.close()
        stage, attempt = ctx.stage_name, ctx.attempt
        RunDir(ctx.run_root).journal_parts.mkdir(exist_ok=True)
        ctx.writer = RankWriter(RunDir(ctx.run_root), stage=stage, attempt=attempt, rank=here.rank, launch=1)
        journal = RunDir(ctx.run_root).rank_journal(stage, attempt, here.rank)
    if job.get("resume"):
        place = Path(job["resume"])
        manifest = read_manifest(place)
        ctx.resume = ResumePoint(int(manifest["attempt"]), int(manifest["step"]), place, manifest_sha256(place))
    record: dict[str, Any] = {"error": "", "out": str(ctx.out), "checkpoints": str(ctx.checkpoints)}
    try:
        with _no_memory(here.rank == job.get("no_evaluation_in")):
            record["metrics"] = _run(ctx).metrics
    except BaseException as error:  # noqa: BLE001 - what a rank ends with is what the tests read
        record["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    record["events"] = [msgspec.to_builtins(event) for event in read_journal(journal)]
    ctx.writer.close()
    return record


@contextmanager
def _no_memory(here: bool) -> Iterator[None]:
    """Let no row of an evaluation fit into memory in this process."""
    from engines.training.fitting import Fitting

    def refused(*_: Any) -> Iterator[Any]:
        raise MemoryError

    real = Fitting.each
    if here:
        Fitting.each = refused  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Fitting.each = real  # type: ignore[method-assign]


def _run(ctx: TriedContext) -> Any:
    from engines.evaluate.stage import run as evaluate
    from engines.finetune.stage import run as finetune
    from engines.preference.stage import run as prefer
    from engines.pretrain.stage import run as pretrain

    kinds: dict[str, Callable[[Any], Any]] = {
        "pretrain": pretrain,
        "finetune": finetune,
        "dpo": prefer,
        "evaluate": evaluate,
    }
    return kinds[ctx.stage.kind](ctx)


def main() -> None:
    """Run all jobs."""
    import torch

    torch.set_num_threads(1)
    jobs, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    here = world()
    here.connect()
    for job in jobs:
        record = run(job, folder)
        (folder / f"{job['name']}.{here.rank}.json").write_text(json.dumps(record))
        here.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
