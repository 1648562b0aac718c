"""An evaluation of two processes: kills of each lose no answer, and any number of processes continues it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.launch import resume
from cockpit.supervision.engine_process import find_engine
from cockpit.supervision.rank_processes import rank_processes
from engines.control import put_request
from engines.events.attempts import AttemptEnded
from engines.events.runs import StageSucceeded
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.engines.small_corpora import write_rows
from tests.engines.training import tiny
from tests.runs.harness import (
    assert_no_process_left,
    engine_pid,
    events,
    fake_recipe,
    launch_text,
    nothing_left,
    wait_for,
    wait_for_end,
)
from tests.runs.test_hosts import free_port

pytestmark = [pytest.mark.torch, pytest.mark.slow]

STAGE = "judge"
TWO: dict[str, Any] = {"processes": 2, "strategy": "ddp"}
ROWS = [("docstring", f"a{at}?", "yes") for at in range(480)]


def recipe(folder: Path, launch: dict[str, Any] = TWO, rows: int = 480) -> str:
    model, data = tiny.write_model(folder / "model"), write_rows(folder / "rows", ROWS[:rows])
    fields: dict[str, Any] = {
        "name": STAGE,
        "kind": "evaluate",
        "model": str(model),
        "data": str(data),
        "test_data": str(data),
        "checks": ["contains"],
        "max_length": 64,
        "max_new_tokens": 8,
        "launch": launch,
    }
    return fake_recipe(fields)


def answers(run: RunDir) -> dict[str, list[dict[str, Any]]]:
    """The whole lines of each file of answers, by its name.

    A continued evaluation takes another process's file into the first one's and removes it: it may go between its
    name and its lines, and until it goes an answer may be in both.
    """
    found = {}
    for path in run.stage_dir(STAGE).glob("answers-*"):
        with contextlib.suppress(FileNotFoundError):
            lines = [line for line in path.read_bytes().splitlines(keepends=True)[1:] if line.endswith(b"\n")]
            found[path.name] = [json.loads(line) for line in lines]
    return found


def more_in_both(run: RunDir, before: int) -> bool:
    """Whether two processes have answered, and more questions than `before` have an answer."""
    found = answers(run)
    keys = {one["key"] for lines in found.values() for one in lines}
    return len(found) == 2 and all(found.values()) and len(keys) >= before + 4


def kept(run: RunDir) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for lines in answers(run).values() for one in lines}


def pids(run: RunDir, attempt: int) -> dict[int, int]:
    engine = find_engine(run, STAGE, attempt)
    assert engine is not None
    engine.close()
    return {rank: one.pid for rank, one in rank_processes(engine.identity, run.root).items()}


def last_end(run: RunDir) -> AttemptEnded:
    return next(e for e in reversed(events(run)) if isinstance(e, AttemptEnded))


def test_kills_and_a_stop_lose_no_answer_and_one_process_finishes_what_two_began(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "runs"):
        run = launch_text(recipe(tmp_path), tmp_path)
        wait_for(lambda: more_in_both(run, 0), "answers of both processes")
        os.kill(pids(run, 1)[1], signal.SIGKILL)
        assert wait_for_end(run) == "failed"
        assert last_end(run).detail.startswith("rank 1 of 2: killed by SIGKILL")
        assert_no_process_left(run)
        first = kept(run)

        resume(run)
        wait_for(lambda: more_in_both(run, len(first)), "more answers of both processes")
        torchrun = engine_pid(run, STAGE, 2)
        assert torchrun is not None
        os.kill(torchrun, signal.SIGKILL)
        assert wait_for_end(run) == "failed"
        assert last_end(run).detail.startswith("torchrun, with 2 processes: killed by SIGKILL")
        assert_no_process_left(run)
        second = kept(run)
        assert first.items() <= second.items()

        resume(run)
        wait_for(lambda: more_in_both(run, len(second)), "more answers of both processes")
        put_request(run.control, Verb.STOP)
        assert wait_for_end(run) == "stopped"
        assert_no_process_left(run)
        third = kept(run)
        assert second.items() <= third.items()
        assert len(third) < len(ROWS)

        resume(run, sets=[f"{STAGE}.launch.processes=1", f'{STAGE}.launch.strategy="single"'])
        assert wait_for_end(run) == "succeeded"
        ((name, lines),) = answers(run).items()
        assert ".rank" not in name
        assert len(lines) == len({one["key"] for one in lines}) == len(ROWS)
        assert third.items() <= kept(run).items()
        (done,) = [e for e in events(run) if isinstance(e, StageSucceeded)]
        assert done.metrics["test_rows"] == len(ROWS)


def test_two_hosts_divide_the_rows_and_the_first_one_has_the_results(tmp_path: Path) -> None:
    table = {"nodes": 2, "strategy": "ddp", "rendezvous": f"127.0.0.1:{free_port()}"}
    text = recipe(tmp_path, table, rows=6)
    folders = [tmp_path / name for name in ("a", "b")]
    with nothing_left(*(folder / "runs" for folder in folders)):
        for folder in folders:
            folder.mkdir()
        runs = [launch_text(text, folder) for folder in folders]
        states = {wait_for_end(run): run for run in runs}
    assert set(states) == {"succeeded", "stopped"}
    first, other = states["succeeded"], states["stopped"]
    assert len(kept(first)) == 6
    assert len(kept(other)) == 3
    assert kept(other).items() <= kept(first).items()
    assert last_end(other).detail.endswith(f"its run {first.id} has the results")
