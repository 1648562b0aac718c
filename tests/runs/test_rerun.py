"""A requested rerun outlives its attempt, and every figure belongs to the output that stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.headless.report import report_lines
from cockpit.launching.launch import resume
from cockpit.launching.requests import send_request
from engines.artifacts.manifest import read_manifest
from engines.events.attempts import AttemptStarted
from engines.events.steps import Step
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.runs.harness import events, fake_recipe, launch_text, nothing_left, state, wait_for, wait_for_end


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """A finished run whose stage is being rerun from its start, and was stopped after a checkpoint."""
    with nothing_left(tmp_path / "runs"):
        made = launch_text(fake_recipe({"max_steps": 60, "step_s": 0.005, "save_steps": 5}), tmp_path)
        assert wait_for_end(made) == "succeeded"
        resume(made, stage="part-1", sets=["part-1.step_s=0.2"])  # slow: the stop comes before its end
        wait_for(lambda: [e for e in events(made) if isinstance(e, Step) and e.attempt == 2], "a step of the rerun")
        send_request(made, Verb.STOP_AFTER_CHECKPOINT)
        assert wait_for_end(made) == "stopped"
        yield made


def test_a_stopped_rerun_continues_at_the_next_resume_and_ends_with_its_own_figures(run: RunDir) -> None:
    reached = max(e.step for e in events(run) if isinstance(e, Step) and e.attempt == 2)
    assert reached < 60
    resume(run, sets=["part-1.step_s=0"])
    assert wait_for_end(run) == "succeeded"
    third = [e for e in events(run) if isinstance(e, AttemptStarted) and e.attempt == 3]
    assert third[0].resumed_from is not None
    assert (third[0].resumed_from.attempt, third[0].resumed_from.step) == (2, reached)
    assert read_manifest(run.out("part-1"))["attempt"] == 3
    stage = state(run).stages[0]
    assert (stage.succeeded_attempt, stage.at_step, stage.fraction) == (3, 60, 1.0)


def test_while_a_rerun_is_unfinished_the_output_is_shown_as_that_of_its_attempt(run: RunDir) -> None:
    stage = state(run).stages[0]
    assert stage.state == "stopped"
    assert stage.standing is not None
    assert stage.standing.attempt == read_manifest(run.out("part-1"))["attempt"] == 1
    assert {a.attempt for a in stage.artifacts} == {1}
    assert "part-1: the output is that of attempt 1; the rerun has not finished" in report_lines(state(run))


def test_a_rerun_whose_attempt_never_began_starts_from_step_0(run: RunDir) -> None:
    resume(run, stage="part-1", sets=["part-1.step_s=0"])
    wait_for(lambda: [e for e in events(run) if isinstance(e, AttemptStarted) and e.attempt == 3], "the third attempt")
    assert wait_for_end(run) == "succeeded"
    third = [e for e in events(run) if isinstance(e, AttemptStarted) and e.attempt == 3]
    assert third[0].resumed_from is None
