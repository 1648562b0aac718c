"""A machine that slept: its wall clock went on, its monotonic clock stood, and no process lost any time."""

from __future__ import annotations

import msgspec
import pytest

from cockpit.runs.eta import stage_time_left
from cockpit.runs.health import Clock, health
from cockpit.runs.state import fold
from engines.events.steps import Step
from tests.cockpit.runs.test_health import training
from tests.tui.journals import T0

NIGHT_S = 8 * 3600.0


def test_a_night_of_sleep_is_no_stall_and_changes_no_estimate() -> None:
    journal = training(1.0)
    before = fold(journal.events)
    awake_m = journal.t - T0
    newest = next(event for event in reversed(journal.events) if isinstance(event, Step))
    slept = list(journal.events)
    seq = max(event.seq for event in slept if event.w == newest.w)
    for number in range(1, 6):
        step = msgspec.structs.replace(newest, step=newest.step + number, seq=seq + number)
        slept.append(msgspec.structs.replace(step, t=journal.t + NIGHT_S + number, m=awake_m + number))
    state = fold(slept)
    found = health(state, state.state, Clock("b", awake_m + 6))
    assert (found.word, found.sentence) == ("running", "")
    stage, stage_before = state.stage("atlas"), before.stage("atlas")
    assert stage is not None
    assert stage_before is not None
    left, left_before = stage_time_left(stage), stage_time_left(stage_before)
    assert left is not None
    assert left_before is not None
    assert left.seconds == pytest.approx(left_before.seconds, rel=0.1), "the night is no part of a step"


def test_right_after_waking_the_engine_has_its_usual_time() -> None:
    journal = training(1.0)
    state = fold(journal.events)
    awake_m = journal.t - T0
    assert health(state, state.state, Clock("b", awake_m + 2)).word == "running"
    assert health(state, state.state, Clock("b", awake_m + 90)).word == "stalled", "awake, the same silence is one"
