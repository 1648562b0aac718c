"""Screens own nothing: killed, hung up or left, training goes on."""

from __future__ import annotations

import os
import pty
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from engines.events import Step
from engines.run_dir import RunDir, lock_holder
from tests.runs.harness import (
    assert_contiguous,
    assert_no_process_left,
    engine_pid,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    state,
    wait_for,
    wait_for_end,
)

ROOT = Path(__file__).resolve().parents[2]
SCREEN_KILLS = 10
SEED = 10


class Screen:
    """A cockpit in a terminal of its own; everything it draws is read, so that it never waits for us."""

    def __init__(self, *argv: str, columns: int = 100, rows: int = 30) -> None:
        self.drawn = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES=str(rows))
            os.execv(sys.executable, [sys.executable, "-m", "cockpit", *argv])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def has_drawn(self) -> bool:
        """Whether anything was painted yet."""
        return len(self.drawn) > 0

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def hang_up(self) -> None:
        """Close the terminal, as a dropped connection does."""
        os.close(self.master)
        self.wait()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        with suppress(OSError):
            os.close(self.master)

    def wait(self) -> None:
        """Collect the exit status."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _read(self) -> None:
        with suppress(OSError):
            while chunk := os.read(self.master, 65_536):
                self.drawn += chunk


def _step(run: RunDir) -> int:
    return max((e.step for e in events(run) if isinstance(e, Step)), default=0)


@pytest.mark.slow
def test_screens_that_are_killed_leave_engine_and_supervisor_alone(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.01, "save_steps": 500}), tmp_path)
    wait_for(lambda: _step(run) > 0, "the first step")
    engine, supervisor = engine_pid(run, "part-1", 1), lock_holder(run.supervisor_lock)["pid"]
    for _ in range(SCREEN_KILLS):
        screen = Screen("attach", run.id, "--runs-dir", str(tmp_path / "runs"))
        wait_for(screen.has_drawn, "the screen's first paint")
        time.sleep(draw.uniform(0.0, 0.6))
        screen.kill()
    before = _step(run)
    wait_for(lambda: _step(run) > before, "training to go on")
    assert engine_pid(run, "part-1", 1) == engine
    assert lock_holder(run.supervisor_lock)["pid"] == supervisor
    os.kill(supervisor, signal.SIGTERM)
    assert wait_for_end(run) == "stopped"
    assert_contiguous(run)
    assert_no_process_left(run)


@pytest.mark.slow
def test_a_terminal_that_hangs_up_under_the_screen_leaves_the_engine_to_its_last_step(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 400, "step_s": 0.01}), tmp_path)
    wait_for(lambda: _step(run) > 0, "the first step")
    screen = Screen("attach", run.id, "--runs-dir", str(tmp_path / "runs"))
    wait_for(lambda: len(screen.drawn) > 2000, "the screen to be drawn")
    screen.hang_up()
    assert wait_for_end(run) == "succeeded"
    stage = state(run).stage("part-1")
    assert stage is not None
    assert stage.last_step is not None
    assert stage.last_step.step == 400
    assert_no_process_left(run)


@pytest.mark.slow
def test_a_screen_on_a_run_whose_supervisor_died_lets_it_go_on_to_the_next_stage(tmp_path: Path) -> None:
    stages = [{"max_steps": 100, "step_s": 0.01}, {"max_steps": 20, "step_s": 0.01}]
    run = launch_text(fake_recipe(*stages), tmp_path)
    wait_for(lambda: _step(run) > 0, "the first step")
    screen = Screen("--runs-dir", str(tmp_path / "runs"))
    wait_for(lambda: run.id.encode() in screen.drawn, "the run on Home")
    screen.type("\t\r")  # to the runs, and open the newest
    wait_for(lambda: b"grad_norm" in screen.drawn, "the run's screen")
    kill_supervisor(run)
    assert wait_for_end(run) == "succeeded"
    assert [stage.state for stage in state(run).stages] == ["succeeded", "succeeded"]
    screen.kill()
