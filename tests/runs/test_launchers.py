"""An engine that a launcher starts in a namespace of processes of its own, as docker does: its number there is another
one than here, and its parent is not the supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.adoption import SCREEN, adopt
from cockpit.launching.launch import resume
from cockpit.provenance.mark import inner_pid
from cockpit.runs.reader import read_now
from cockpit.supervision.engine_process import EngineProcess, find_engine
from engines.control import put_request
from engines.events.attempts import AttemptEnded
from engines.events.steps import Step
from engines.events.writers import WriterOpened
from engines.identity import process_state
from engines.run_dir.paths import RunDir
from engines.words import EndReason, MemoryEnd, Verb, WriterRole
from tests.runs import stand_in_docker
from tests.runs.harness import (
    assert_contiguous,
    assert_no_process_left,
    engine_pid,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    nothing_left,
    wait_for,
    wait_for_end,
    wait_for_step,
)

_able = subprocess.run([*stand_in_docker.namespace(), "true"], capture_output=True, check=False).returncode == 0
pytestmark = pytest.mark.skipif(not _able, reason="this user may not make a namespace of processes")

LONG: dict[str, Any] = {"max_steps": 100_000, "step_s": 0.02, "save_steps": 10, "python": sys.executable}


def docker(folder: Path) -> str:
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in_docker.__file__} "$@"\n')
    program.chmod(0o755)
    return str(program)


def text_of(folder: Path, image: str = "image", **fields: Any) -> str:
    return fake_recipe({**LONG, **fields, "launch": {"launcher": [docker(folder), "run", image]}})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with nothing_left(tmp_path / "runs"):
        made = launch_text(text_of(tmp_path), tmp_path)
        wait_for_step(made)
        yield made


def inside(run: RunDir, attempt: int = 1) -> int:
    """The engine's process, as this machine numbers it, once the supervisor knows it."""
    return wait_for(lambda: _inside(run, attempt), "the supervisor to find the engine behind its launcher")


def _inside(run: RunDir, attempt: int) -> int | None:
    pid = engine_pid(run, "part-1", attempt)
    return pid if pid is not None and inner_pid(pid) not in {None, pid} else None


def last_end(run: RunDir) -> AttemptEnded:
    found = [e for e in events(run) if isinstance(e, AttemptEnded)]
    return found[-1]


def test_a_run_in_a_container_succeeds_and_its_engine_has_what_it_needs(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "runs"):
        run = launch_text(text_of(tmp_path, max_steps=20), tmp_path)
        assert wait_for_end(run) == "succeeded"
    assert sum(isinstance(e, Step) for e in events(run)) == 20
    assert_contiguous(run)
    assert_no_process_left(run)


def test_its_engine_is_seen_under_its_number_here_and_a_suspended_one_is_said(run: RunDir) -> None:
    pid = inside(run)
    named = next(e for e in events(run) if isinstance(e, WriterOpened) and e.role == WriterRole.ENGINE)
    assert named.pid == inner_pid(pid) != pid
    reader = read_now(run)
    assert reader.health(reader.look()).word == "running"
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: process_state(pid) == "T", "the engine to be stopped")
    reader = read_now(run)
    assert "stopped" in reader.health(reader.look()).line
    os.kill(pid, signal.SIGCONT)
    kill_supervisor(run)
    assert read_now(run).is_live()  # by the engine alone


def test_an_engine_that_is_killed_in_its_container_was_killed_and_the_run_resumes(run: RunDir) -> None:
    os.kill(inside(run), signal.SIGKILL)
    assert wait_for_end(run) == "failed"
    end = last_end(run)
    assert (end.reason, end.exit, end.memory) == (EndReason.KILLED, -signal.SIGKILL, MemoryEnd.UNKNOWN)
    resume(run)
    wait_for(lambda: any(isinstance(e, Step) and e.attempt == 2 for e in events(run)), "a step of attempt 2")
    put_request(run.control, Verb.STOP_AFTER_CHECKPOINT, by="test")
    assert wait_for_end(run) == "stopped"
    assert_no_process_left(run)


def test_no_engine_outlives_a_launcher_that_is_killed(run: RunDir) -> None:
    inside(run)
    client = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_client(entry, str(run.stage_json("part-1", 1)))
    )
    os.kill(client, signal.SIGKILL)
    assert wait_for_end(run) == "failed"
    assert last_end(run).reason == EndReason.KILLED
    assert_no_process_left(run)


def _is_client(process: Path, stage_json: str) -> bool:
    try:
        words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
    except OSError:
        return False
    return stand_in_docker.__file__ in words and stage_json in words


def test_another_supervisor_adopts_it_and_stops_it(run: RunDir) -> None:
    pid = inside(run)
    kill_supervisor(run)
    found = find_engine(run, "part-1", 1)
    assert isinstance(found, EngineProcess)
    assert (found.identity.pid, found.behind) == (pid, None)
    found.close()
    assert adopt(run, SCREEN)
    put_request(run.control, Verb.STOP, by="test")
    assert wait_for_end(run) == "stopped"
    assert len({e.attempt for e in events(run) if isinstance(e, Step)}) == 1
    assert_no_process_left(run)


def test_a_container_that_cannot_start_is_the_reason(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "runs"):
        run = launch_text(text_of(tmp_path, "missing"), tmp_path)
        assert wait_for_end(run) == "failed"
    assert "docker exited with status 125" in last_end(run).detail
    assert "Unable to find image" in run.console_log("part-1", 1).read_text()
    assert json.loads(run.engine_json("part-1", 1).read_text())["launcher"].endswith("docker")
