"""Training continues with dropped terminals, missing readers and full disks."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cockpit.runs.find import run_ids
from cockpit.runs.reader import RunReader
from engines.events.runs import RunStarted
from engines.events.steps import Step
from engines.events.writers import Gap, WriterOpened
from engines.run_dir.locks import lock_holder
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, WriterRole
from tests.cockpit.command_line import CODE_ROOT
from tests.patience import PATIENCE_S
from tests.runs.harness import (
    assert_contiguous,
    assert_no_process_left,
    end_soon,
    engine_pid,
    events,
    fake_recipe,
    launch_text,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_step,
)
from tests.runs.screen import Screen


@pytest.mark.slow
def test_after_a_hangup_of_cockpit_run_only_the_follower_ends(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(fake_recipe({"max_steps": 100_000, "step_s": 0.01}))
    runs = tmp_path / "runs"
    terminal = Screen("run", str(recipe), "--runs-dir", str(runs))
    run = RunDir(runs / wait_for(lambda: run_ids(runs), "a run")[0])
    wait_for_step(run, 6)
    terminal.hang_up()
    last = end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == last
    assert_no_process_left(run)


@pytest.mark.slow
def test_a_run_whose_pipe_has_no_reader_reaches_its_last_step(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 1_000_000, "step_s": 0.0005, "save_steps": 1000}), tmp_path)
    wait_for_step(run)
    supervisor = lock_holder(run.supervisor_lock)["pid"]
    os.kill(supervisor, signal.SIGSTOP)  # alive, holding everything, reading nothing
    try:
        last = end_soon(run, 2000)
        wait_for(lambda: step_of(run) == last, "the last step, with the pipe full since long")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert wait_for_end(run) == "succeeded"
    assert_contiguous(run)


@pytest.mark.slow
def test_a_journal_that_cannot_grow_stops_neither_training_nor_charts_and_a_gap_follows(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.01, "save_steps": 1000}), tmp_path)
    wait_for_step(run, 6)
    pid = wait_for(lambda: engine_pid(run, "part-1", 1), "the engine")
    screen = RunReader(run, live=True)
    wait_for(lambda: screen.poll(0.1) and screen.state.stage("part-1") is not None, "the screen to catch up")
    size = run.journal.stat().st_size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # the engine's disk is full
    journaled = step_of(run)

    def charted() -> int:
        screen.poll(0.1)
        stage = screen.state.stage("part-1")
        return stage.last_step.step if stage and stage.last_step else 0

    reached = wait_for(lambda: (at := charted()) > journaled + 50 and at, "charts that move without the journal")
    assert step_of(run) <= journaled + 1
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gap = wait_for(lambda: next((e for e in events(run) if isinstance(e, Gap)), None), "a gap record")
    assert gap.lost >= reached - journaled - 2
    last = end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == last
    screen.close()


def _fill(fd: int) -> None:
    with suppress(OSError):
        while True:
            os.write(fd, b"x" * 4096)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_on_a_full_file_system_lifecycle_records_are_kept_for_later(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(small)], check=False, capture_output=True
    ).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        from engines.emitter import EventWriter
        from engines.events.writers import Warned
        from engines.journal import JournalReader

        ballast = small / "ballast"
        writer = EventWriter(small / "journal.jsonl", None, role=WriterRole.ENGINE, stage="s", attempt=1)
        fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        _fill(fd)
        os.close(fd)
        for step in range(1, 400):
            writer.emit(
                Step(
                    stage="s",
                    attempt=1,
                    step=step,
                    epoch=0,
                    loss=1.0,
                    learning_rate=1.0,
                    grad_norm=1.0,
                    tokens=1,
                    loss_tokens=1,
                    step_s=1,
                )
            )
        writer.emit(Warned(message="written while the disk was full"))
        ballast.unlink()
        writer.emit(Warned(message="written when space had returned"))
        writer.close()
        reader = JournalReader(small / "journal.jsonl")
        found = [record.event for record in reader.read(10_000)]
        assert isinstance(found[0], WriterOpened)
        texts = [event.message for event in found if isinstance(event, Warned)]
        assert texts == ["written while the disk was full", "written when space had returned"]
        gaps = [event.lost for event in found if isinstance(event, Gap)]
        steps = sum(1 for event in found if isinstance(event, Step))
        assert sum(gaps) + steps == 399
        assert reader.bad <= 1, "at most the record that was cut short"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


@pytest.mark.slow
def test_a_follower_that_was_suspended_while_its_run_ended_ends_with_the_run_s_exit_code(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(fake_recipe({"max_steps": 1_000_000, "step_s": 0.0002, "save_steps": 1000}))
    runs = tmp_path / "runs"
    argv = [sys.executable, "-m", "cockpit", "run", str(recipe), "--runs-dir", str(runs)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CODE_ROOT) as follower:
        run = RunDir(runs / wait_for(lambda: run_ids(runs), "a run")[0])
        wait_for_step(run, 6)
        os.kill(follower.pid, signal.SIGSTOP)
        end_soon(run)
        assert wait_for_end(run) == "succeeded"
        os.kill(follower.pid, signal.SIGCONT)
        out, errors = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == ExitCode.DONE, errors
    assert "run succeeded" in out
    assert "supervisor" not in errors
    assert [event.reason for event in events(run) if isinstance(event, RunStarted)] == ["launch"]
