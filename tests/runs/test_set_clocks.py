"""Real runs on a machine whose clock is set: the times in the journal are moved, as if it had been wrong until now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.launching.adoption import FOLLOWER, adopt
from cockpit.launching.launch import resume
from cockpit.launching.requests import send_request
from cockpit.runs.reader import RunReader
from cockpit.runs.summaries import summary_of
from engines.events.attempts import AttemptStarted
from engines.events.runs import RunStarted
from engines.events.steps import Step
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.runs.harness import (
    assert_no_process_left,
    end_soon,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    nothing_left,
    state,
    wait_for,
    wait_for_end,
    wait_for_step,
)

STEPS_S = [
    -3600,
    3600,
    *(pytest.param(seconds, marks=pytest.mark.thorough) for seconds in (-86_400, -20, 20, 86_400)),
]
_T = re.compile(rb'"t":(\d{10})\.')


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with nothing_left(tmp_path / "runs"):
        fields = {"max_steps": 100_000, "step_s": 0.005, "save_steps": 10}
        yield launch_text(fake_recipe(fields, {"max_steps": 3, "data": "part-1"}), tmp_path)


def set_clock_until_now(run: RunDir, by_s: int) -> None:
    """Move the time of every record so far, in place: engines keep the file open and append to it."""
    with run.journal.open("r+b") as journal:
        data = journal.read()
        data = data[: data.rfind(b"\n") + 1]
        moved = _T.sub(lambda found: b'"t":%010d.' % (int(found[1]) + by_s), data)
        assert len(moved) == len(data)
        journal.seek(0)
        journal.write(moved)


def last_step(run: RunDir) -> int:
    return max(e.step for e in events(run) if isinstance(e, Step) and e.stage == "part-1")


@pytest.mark.parametrize("by_s", STEPS_S)
def test_a_stopped_run_resumes_and_trains_on(run: RunDir, by_s: int) -> None:
    wait_for_step(run, 15)
    send_request(run, Verb.STOP_AFTER_CHECKPOINT)
    assert wait_for_end(run) == "stopped"
    reached = last_step(run)
    set_clock_until_now(run, by_s)
    assert state(run).state == "stopped"
    resume(run, sets=[f"part-1.max_steps={reached + 50}"])
    assert wait_for_end(run) == "succeeded"
    (again,) = (e for e in events(run) if isinstance(e, AttemptStarted) and e.attempt == 2)
    assert again.resumed_from is not None
    assert again.resumed_from.step == reached
    assert last_step(run) == reached + 50
    assert summary_of(RunReader(run)).state == "succeeded"


@pytest.mark.parametrize("by_s", STEPS_S)
def test_a_run_whose_supervisor_died_is_adopted_once(run: RunDir, by_s: int) -> None:
    wait_for_step(run, 5)
    kill_supervisor(run)
    set_clock_until_now(run, by_s)
    assert adopt(run, FOLLOWER)
    end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert_no_process_left(run)
    assert not adopt(run, FOLLOWER), "it has ended, whatever its times say"
    starts = [e for e in events(run) if isinstance(e, RunStarted)]
    assert [(e.launch, e.reason) for e in starts] == [(1, "launch"), (2, "adopt")]
    assert [e.attempt for e in events(run) if isinstance(e, AttemptStarted)] == [1, 1]
    wait_for(lambda: summary_of(RunReader(run)).state == "succeeded", "the state of the list")
