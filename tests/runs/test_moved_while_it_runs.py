"""A run directory that is renamed while its run trains: it is said, nothing is lost, and it is resumed where it is."""

from __future__ import annotations

from pathlib import Path

from cockpit.launching.launch import resume
from cockpit.launching.requests import send_request
from cockpit.runs.reader import read_now
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.steps import CheckpointCommitted
from engines.events.writers import Warned
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.runs.harness import (
    assert_contiguous,
    assert_no_process_left,
    end_soon,
    events,
    fake_recipe,
    launch_text,
    state,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_step,
)


def _refused(run: RunDir) -> bool:
    return any(isinstance(e, Warned) and "could not be written" in e.message for e in events(run))


def _saved(run: RunDir) -> list[int]:
    return [event.step for event in events(run) if isinstance(event, CheckpointCommitted)]


def test_a_run_that_is_moved_away_and_back_loses_one_checkpoint(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02, "save_steps": 20}), tmp_path)
    wait_for_step(run, 3)
    away = RunDir(run.root.rename(tmp_path / "away"))
    wait_for(lambda: _refused(away), "a save that found no folder")
    assert not run.root.exists(), "the folder is not made again under its old name"
    reply = send_request(away, Verb.STOP)
    assert not reply.sent, "no process would see the request"
    assert reply.hint == f"move it back: mv {away.root} {run.root}"
    reader = read_now(away)
    assert (
        f"it was moved while it runs: its processes save nothing and take no request until it is back at {run.root}"
        in (reader.health(reader.look()).concerns)
    )
    away.root.rename(run.root)
    last = end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == last
    assert _saved(run)[-1] == last
    assert_contiguous(run)


def test_a_run_that_is_moved_for_good_says_so_and_is_resumed_where_it_is(tmp_path: Path) -> None:
    stage = {"max_steps": 100_000, "step_s": 0.02, "save_steps": 20, "retry": {"max_attempts": 3}}
    run = launch_text(fake_recipe(stage), tmp_path)
    wait_for(lambda: _saved(run), "a checkpoint")
    end_soon(run, 200)  # who is moved takes no request: its end is asked for before, and comes seconds later
    moved = RunDir(run.root.rename(run.root.with_name(f"{run.id}-moved")))
    wait_for(lambda: not lock_is_held(moved.supervisor_lock), "the supervisor's end")
    assert wait_for_end(moved) == "failed"
    assert not run.root.exists(), "no further attempt makes the folder again"
    (end,) = [
        event for event in events(moved) if isinstance(event, AttemptEnded) and event.detail and event.exit is None
    ]
    assert end.detail == f"{run.root} was moved or removed while the engine ran; resume the run where it is now"
    assert not any(isinstance(event, Warned) and "supervisor failed" in event.message for event in events(moved))
    saved, reached = _saved(moved)[-1], step_of(moved)
    resume(moved, sets=[f"part-1.max_steps={reached + 20}"])
    assert wait_for_end(moved) == "succeeded"
    again = [event for event in events(moved) if isinstance(event, AttemptStarted)][-1]
    assert again.resumed_from is not None
    assert again.resumed_from.step == saved
    assert list(state(moved).series("part-1", "loss").x) == list(range(1, reached + 21))
    assert_no_process_left(moved)
