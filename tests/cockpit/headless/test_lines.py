"""Lines about a run: what they say of a stage is what its engine does."""

from __future__ import annotations

from cockpit.headless.lines import event_line, has_line, stage_line
from cockpit.runs.state import fold
from engines.events.attempts import EngineRecovered, EngineStalled
from tests.tui import journals


def test_a_stalled_stage_has_no_time_left_until_it_recovers() -> None:
    journal = journals.live(50)
    journal.say("sup", EngineStalled(stage="atlas", attempt=1, silence_s=90.0, usual_step_s=4.0, stacks=True), 90)
    state = fold(journal.events)
    stage = state.stage("atlas")
    assert stage is not None
    line = stage_line(stage, state, None)
    assert line.endswith("stalled")
    assert "ETA" not in line
    journal.say("sup", EngineRecovered(stage="atlas", attempt=1, silence_s=100.0), 10)
    state = fold(journal.events)
    stage = state.stage("atlas")
    assert stage is not None
    assert "ETA" in stage_line(stage, state, None)


def test_a_stall_and_its_end_have_lines_that_name_pace_and_stacks() -> None:
    journal = journals.live(50)
    stalled = EngineStalled(
        stage="atlas", attempt=1, silence_s=90.0, usual_step_s=4.0, last_progress="step 50", stacks=True
    )
    journal.say("sup", stalled, 90)
    journal.say("sup", EngineRecovered(stage="atlas", attempt=1, silence_s=100.0), 10)
    first, second = journal.events[-2:]
    assert has_line(first)
    assert has_line(second)
    said = event_line(first)
    assert "✗ atlas attempt 1: no progress for 1m30s after step 50, usually 4s; its stacks are in console.log" in said
    assert "✓ atlas attempt 1: progress again after 1m40s" in event_line(second)
