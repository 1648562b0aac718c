"""Seeded kills with -9 of every process of a run: no acknowledged record is lost, and the run continues."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from cockpit.launching.adoption import FOLLOWER, Observer
from cockpit.launching.launch import resume
from engines.events.attempts import AttemptStarted
from engines.events.writers import Warned, WriterOpened
from engines.identity import Identity
from engines.run_dir.paths import RunDir
from tests.runs.harness import (
    acknowledged,
    assert_contiguous,
    assert_no_process_left,
    end_soon,
    ended,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    state,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
)

ENGINE_KILLS, ENGINE_PARTS = 150, 10
SUPERVISOR_KILLS = 30
SAMPLER_KILLS = 10
SEED = 20261120


def _writer_of_attempt(run: RunDir, attempt: int) -> bool:
    return any(isinstance(e, WriterOpened) and e.role == "engine" and e.attempt == attempt for e in events(run))


def _sampler(run: RunDir, number: int) -> WriterOpened | None:
    opened = [e for e in events(run) if isinstance(e, WriterOpened) and e.role == "sampler"]
    return opened[number - 1] if len(opened) >= number else None


def _is_gone(pid: int) -> bool:
    return Identity.of(pid) is None


def more(start: int, stop: int) -> list[ParameterSet]:
    """Further parts of a test, for --thorough."""
    return [pytest.param(part, marks=pytest.mark.thorough) for part in range(start, stop)]


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *more(1, ENGINE_PARTS)])
def test_a_killed_engine_loses_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    draw = random.Random(SEED + part)
    ack_file = tmp_path / "acknowledged"
    monkeypatch.setenv("COCKPIT_TEST_FAULTS", json.dumps({"ack_file": str(ack_file)}))
    recipe = fake_recipe({"max_steps": 100_000, "step_s": 0.0005, "save_steps": 50, "retry": {"max_attempts": 3}})
    run = launch_text(recipe, tmp_path)
    acked: dict[str, int] = {}
    for kill in range(1, ENGINE_KILLS // ENGINE_PARTS + 1):
        wait_for(partial(_writer_of_attempt, run, kill), f"attempt {kill}")
        time.sleep(draw.uniform(0.0, 0.12))
        pid = wait_for_engine(run, attempt=kill)
        os.kill(pid, signal.SIGKILL)
        wait_for(partial(_is_gone, pid), "the engine's end")
        stored = acknowledged(ack_file)
        if stored is not None:
            acked[stored[0]] = stored[1]
        if kill % 3 == 0:
            assert wait_for_end(run) == "failed"
            resume(run)
    kill_supervisor(run)
    last = assert_contiguous(run)
    assert acked
    for writer, seq in acked.items():
        assert last[writer] >= seq, f"{writer}: {seq} was acknowledged, the journal ends at {last[writer]}"


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, *more(1, 3)])
def test_a_killed_supervisor_does_not_affect_the_engine_and_adoption_continues_with_the_next_stage(
    tmp_path: Path, part: int
) -> None:
    draw = random.Random(SEED + 100 + part)
    steps = [60] * 7 + [100_000]
    stages = [{"max_steps": count, "step_s": 0.02, "save_steps": 20} for count in steps]
    run = launch_text(fake_recipe(*stages), tmp_path)
    kills = 0
    observer = Observer(run, FOLLOWER)
    observer.adopt()
    while ended(run) is None:
        time.sleep(draw.uniform(0.0, 0.8))
        if kills < SUPERVISOR_KILLS // 3 and kill_supervisor(run) is not None:
            kills += 1
            time.sleep(draw.uniform(0.0, 0.4))
        elif kills == SUPERVISOR_KILLS // 3 and steps[-1] == 100_000 and step_of(run, "part-8"):
            steps[-1] = end_soon(run, stage="part-8")  # the last stage trains until the last kill
        observer.adopt()
    assert kills == SUPERVISOR_KILLS // 3
    assert state(run).state == "succeeded"
    assert_contiguous(run)
    for stage, count in zip(state(run).stages, steps, strict=True):
        engines = [e for e in events(run) if isinstance(e, AttemptStarted) and e.stage == stage.name]
        assert len(engines) == 1, f"{stage.name} needed one engine only: no supervisor's death ended it"
        assert step_of(run, stage.name) == count
    assert_no_process_left(run)


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1, *more(2, SAMPLER_KILLS // 2)])
def test_a_killed_sampler_is_reported_and_restarted(tmp_path: Path, part: int) -> None:
    draw = random.Random(SEED + 200 + part)
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02}, sample_interval_s=0.1), tmp_path)
    for kill in (1, 2):
        sampler = wait_for(partial(_sampler, run, kill), "a sampler")
        time.sleep(draw.uniform(0.0, 0.2))
        os.kill(sampler.pid, signal.SIGKILL)
    wait_for(
        lambda: sum(1 for e in events(run) if isinstance(e, Warned) and "sampler exited" in e.message) == 2,
        "warnings about both deaths",
    )
    wait_for(
        lambda: sum(1 for e in events(run) if isinstance(e, WriterOpened) and e.role == "sampler") == 3,
        "a third sampler",
    )
    stage = state(run).stage("part-1")
    assert stage is not None
    assert len(stage.attempts) == 1
    kill_supervisor(run)
    assert_contiguous(run)
