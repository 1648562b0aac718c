"""A chat notices runs that compute on its cores, and rests for them as its CPU time says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.chatting.courtesy import LOOKS, Courtesy
from engines.identity import process_state
from engines.processor import engines_here
from tests.runs.harness import wait_for

ENGINE = "print('computes', flush=True)\nwhile True: pass\n"


@pytest.fixture(params=[[], ["-u"]], ids=["engine", "rank"])
def engine(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that looks like a run's engine, and computes on one of this process's processors."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "__init__.py").touch()
    (tmp_path / "engines" / "run.py").write_text(ENGINE)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    process = subprocess.Popen(
        [sys.executable, *request.param, "-m", "engines.run"], cwd=tmp_path, env={}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "computes\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        os.sched_setaffinity(0, before)


def test_a_run_that_begins_or_ends_to_compute_is_noticed(
    engine: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "engines.chatting.courtesy.engines_here",
        lambda **which: [pid for pid in engines_here(**which) if pid == engine.pid],
    )
    said: list[bool] = []
    courtesy = Courtesy(said.append)
    courtesy.look()
    assert said == [True]
    engine.send_signal(signal.SIGSTOP)
    wait_for(lambda: process_state(engine.pid) == "T", "the engine to be stopped: until then it computes")
    for _ in range(LOOKS + 1):
        courtesy.look()
    assert said == [True, False], "a paused run is not in the way"
    engine.kill()
    engine.wait()
    courtesy.look()
    assert said == [True, False]


def test_a_chat_rests_for_what_it_used_until_it_is_stopped_or_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter((0.0, 50.0, 100.0, 150.0, 150.0))  # CPU seconds: each rest would take many minutes
    monkeypatch.setattr("engines.chatting.courtesy.spent_s", lambda _pid: next(used))
    courtesy = Courtesy(lambda _slow: None)
    naps: list[str] = []

    def nap(end: str) -> bool:
        naps.append(end)
        if len(naps) == 3 and end == "the run ends":
            courtesy.slow = False
        return len(naps) == 3 and end == "stopped"

    courtesy.rest(lambda: nap("no run"))
    courtesy.rest(lambda: nap("no run"))
    assert naps == [], "no run is in the way"
    for end in ("stopped", "the run ends"):
        naps.clear()
        courtesy.slow = True
        courtesy.rest(lambda end=end: nap(end))  # type: ignore[misc]
        assert naps == [end] * 3
    naps.clear()
    courtesy.slow = True
    courtesy.rest(lambda: nap("nothing used"))
    assert naps == [], "nothing was used"
