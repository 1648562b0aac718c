"""Training continues when a screen is killed, hung up or closed."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from engines.run_dir.locks import lock_holder
from tests.runs.harness import (
    assert_contiguous,
    assert_no_process_left,
    end_soon,
    fake_recipe,
    kill_supervisor,
    launch_text,
    state,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)
from tests.runs.screen import Screen

SCREEN_KILLS = 4
SEED = 10


@pytest.mark.slow
def test_screens_that_are_killed_leave_engine_and_supervisor_alone(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.01, "save_steps": 500}), tmp_path)
    wait_for_step(run)
    engine, supervisor = wait_for_engine(run), lock_holder(run.supervisor_lock)["pid"]
    for _ in range(SCREEN_KILLS):
        screen = Screen("attach", run.id, "--runs-dir", str(tmp_path / "runs"))
        wait_for(screen.has_drawn, "the screen's first paint")
        time.sleep(draw.uniform(0.0, 0.6))
        screen.kill()
    before = step_of(run)
    wait_for(lambda: step_of(run) > before, "training to go on")
    assert wait_for_engine(run) == engine
    assert lock_holder(run.supervisor_lock)["pid"] == supervisor
    os.kill(supervisor, signal.SIGTERM)
    assert wait_for_end(run) == "stopped"
    assert_contiguous(run)
    assert_no_process_left(run)


@pytest.mark.slow
def test_after_a_hangup_of_the_screen_the_engine_reaches_its_last_step(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.01}), tmp_path)
    wait_for_step(run)
    screen = Screen("attach", run.id, "--runs-dir", str(tmp_path / "runs"))
    wait_for(lambda: len(screen.drawn) > 2000, "the screen to be drawn")
    screen.hang_up()
    last = end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == last
    assert_no_process_left(run)


@pytest.mark.slow
def test_a_screen_adopts_a_run_whose_supervisor_died_and_the_next_stage_runs(tmp_path: Path) -> None:
    stages = [{"max_steps": 100_000, "step_s": 0.01}, {"max_steps": 20, "step_s": 0.01}]
    run = launch_text(fake_recipe(*stages), tmp_path)
    wait_for_step(run)
    screen = Screen("--runs-dir", str(tmp_path / "runs"))
    wait_for(lambda: run.id.encode() in screen.drawn, "the run on Home")
    screen.type("\t\r")  # to the runs, and open the newest
    wait_for(lambda: b"grad_norm" in screen.drawn, "the run's screen")
    kill_supervisor(run)
    end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert [stage.state for stage in state(run).stages] == ["succeeded", "succeeded"]
    screen.kill()


@pytest.mark.slow
def test_a_stopped_screen_delays_nothing_and_shows_the_present_when_it_continues(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.005}), tmp_path)
    wait_for_step(run)
    screen = Screen("attach", run.id, "--runs-dir", str(tmp_path / "runs"))
    wait_for(lambda: b"grad_norm" in screen.drawn, "the run's screen")
    screen.suspend()
    drawn = len(screen.drawn)
    last = end_soon(run, 200)
    assert wait_for_end(run) == "succeeded", "the screen reads nothing, and nobody waits for it"
    assert step_of(run) == last
    assert_contiguous(run)
    assert len(screen.drawn) == drawn
    os.kill(screen.pid, signal.SIGCONT)
    wait_for(
        lambda: any(word in screen.drawn[drawn:] for word in (b"%d/%d" % (last, last), b"succeeded")),
        "the end on the screen",
    )
    screen.kill()


@pytest.mark.slow
def test_an_engine_at_full_speed_loses_no_step_under_a_screen(tmp_path: Path) -> None:
    """Thousands of records a second: the screen draws some, the journal and the screen's last state have all."""
    run = launch_text(fake_recipe({"max_steps": 20_000, "step_s": 0.0, "save_steps": 20_000}), tmp_path)
    wait_for_step(run)
    screen = Screen("attach", run.id, "--runs-dir", str(tmp_path / "runs"))
    assert wait_for_end(run) == "succeeded"
    assert_contiguous(run)
    assert step_of(run) == 20_000
    wait_for(lambda: b"20.0k" in screen.drawn or b"20,000" in screen.drawn or b"20000" in screen.drawn, "the last step")
    screen.kill()
