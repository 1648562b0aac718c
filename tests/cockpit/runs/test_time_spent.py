"""Time and CPU of a run are those of its processes: not the nights between an end and a resume."""

from __future__ import annotations

import msgspec
import pytest

from cockpit.headless.report import report_lines
from cockpit.runs.state import RunState, fold
from engines.events.attempts import AttemptEnded
from engines.events.runs import RunEnded, StageSkipped, StageSucceeded
from engines.events.steps import Step
from engines.words import EndReason, RunStatus
from tests.cockpit.runs.test_clock_steps import Story
from tests.tui import journals

NIGHT_S = 36_000.0


def night(story: Story) -> None:
    story._m += NIGHT_S


def test_idle_time_between_a_stop_and_a_resume_counts_nowhere() -> None:
    story = Story()
    one = story.supervisor(1, "launch")
    engine = story.engine(one, 1, "a", 1, 10)
    story.say(engine, AttemptEnded(stage="a", attempt=1, reason=EndReason.STOPPED, cpu_s=40.0))
    story.say(one, AttemptEnded(stage="a", attempt=1, reason=EndReason.STOPPED, exit=0))
    story.say(one, RunEnded(state=RunStatus.STOPPED, launch=1))
    night(story)
    two = story.supervisor(2, "resume", attempts={"a": 1})
    engine = story.engine(two, 2, "a", 2, 10)
    metrics: dict[str, float | None] = {"cpu_s": 30.0}
    story.say(engine, StageSucceeded(stage="a", attempt=2, fingerprint="f", manifest_sha256="m", metrics=metrics))
    story.say(engine, AttemptEnded(stage="a", attempt=2, reason=EndReason.SUCCEEDED, cpu_s=30.5))
    story.say(two, AttemptEnded(stage="a", attempt=2, reason=EndReason.SUCCEEDED, exit=0))
    story.say(two, RunEnded(state=RunStatus.SUCCEEDED, launch=2))
    state = fold(story.events)
    assert state.busy_s == pytest.approx(34.0, abs=3.0)
    assert state.stages[0].busy_s == pytest.approx(24.0, abs=3.0)
    assert state.stages[0].cpu_s == pytest.approx(70.5), "the stopped attempt's CPU time is not left out"
    total = next(line for line in report_lines(state) if line.startswith("total"))
    assert "1m11s" in total or "1m10s" in total
    assert "h" not in total.replace("succeeded", ""), total


def test_the_time_in_which_a_lost_run_lay_dead_is_not_the_stages() -> None:
    story = Story()
    one = story.supervisor(1, "launch")
    story.engine(one, 1, "a", 1, 10)
    night(story)  # the machine lost power; the attempt's end is recorded at the resume
    two = story.supervisor(2, "resume", attempts={"a": 1})
    story.say(two, AttemptEnded(stage="a", attempt=1, reason=EndReason.UNKNOWN))
    story.say(two, RunEnded(state=RunStatus.FAILED, launch=2))
    state = fold(story.events)
    assert state.stages[0].busy_s == pytest.approx(11.0, abs=2.0)
    assert state.busy_s == pytest.approx(17.0, abs=4.0)


def test_an_adopted_engine_counts_its_time_without_a_supervisor_once() -> None:
    story = Story()
    one = story.supervisor(1, "launch")
    engine = story.engine(one, 1, "a", 1, 2)
    story._m += 500.0  # the supervisor is dead, the engine trains
    story.say(engine, AttemptEnded(stage="a", attempt=1, reason=EndReason.STOPPED))
    two = story.supervisor(2, "adopt")
    story.say(two, RunEnded(state=RunStatus.STOPPED, launch=2))
    assert fold(story.events).busy_s == pytest.approx(510.0, abs=5.0)


def test_what_an_older_version_skipped_after_an_unfinished_rerun_is_shown_with_the_figures_of_its_output() -> None:
    story = Story()
    one = story.supervisor(1, "launch")
    engine = story.engine(one, 1, "a", 1, 9)
    metrics: dict[str, float | None] = {"loss": 0.5}
    story.say(engine, StageSucceeded(stage="a", attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics))
    story.say(one, RunEnded(state=RunStatus.SUCCEEDED, launch=1))
    two = story.supervisor(2, "resume", redo=["a"], attempts={"a": 1})
    engine = story.engine(two, 2, "a", 2, 4)
    story.say(engine, AttemptEnded(stage="a", attempt=2, reason=EndReason.STOPPED))
    story.say(two, RunEnded(state=RunStatus.STOPPED, launch=2))
    three = story.supervisor(3, "resume", attempts={"a": 2})
    story.say(three, StageSkipped(stage="a", reason="already finished: fingerprint and manifest match"))
    stage = fold(story.events).stages[0]
    assert (stage.state, stage.at_step, stage.metrics, stage.succeeded_attempt) == ("skipped", 9, metrics, 1)


def test_the_time_of_a_running_run_grows_with_every_record() -> None:
    journal = journals.live(50)
    state = fold(journal.events)
    stage = state.stage("atlas")
    assert stage is not None
    assert state.busy_s is not None
    assert stage.busy_s is not None
    before, of_stage = state.busy_s, stage.busy_s
    newest = next(event for event in reversed(journal.events) if isinstance(event, Step))
    seq = max(event.seq for event in journal.events if event.w == newest.w) + 1
    assert state.apply(msgspec.structs.replace(newest, seq=seq, step=51, m=newest.m + 500, t=newest.t + 500))
    after = state.stage("atlas")
    assert after is not None
    assert after.busy_s == pytest.approx(of_stage + 500, abs=5)
    assert state.busy_s == pytest.approx(before + 500, abs=10)


def test_a_lean_fold_gives_the_same_summary_and_keeps_no_step() -> None:
    events = journals.live(412).events
    whole, lean = fold(events), RunState(lean=True)
    lean.apply_all(events)
    shown = [
        (s.state, s.reason, s.progress, s.busy_s, s.current_stage and (s.current_stage.name, s.current_stage.at_step))
        for s in (whole, lean)
    ]
    assert shown[0] == shown[1]
    assert [s.current_stage and s.current_stage.last_step for s in (lean,)] == [whole.current_stage.last_step]
    kept = [track for writer in lean.writers for track in writer.tracks.values()]
    assert kept
    assert not any(len(track.steps) or track.metrics for track in kept)
    assert not any(machine.series for writer in lean.writers for machine in writer.machines.values())
    assert not any(writer.log or writer.samples for writer in lean.writers)


def test_the_time_of_a_hung_run_continues() -> None:
    journal = journals.live(50)
    before = fold(journal.events).busy_s
    for _ in range(100):
        journal.say("samp", journals.machine(journal.t), 5.0)
    assert before is not None
    assert fold(journal.events).busy_s == pytest.approx(before + 500, abs=10)
