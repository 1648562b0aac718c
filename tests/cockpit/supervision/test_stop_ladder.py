from __future__ import annotations

import random

import pytest

from cockpit.supervision.stop_ladder import MOST_NOW_GRACE_S, NOW_GRACE_S, TERM_GRACE_S, StopLadder
from engines.control import Request
from engines.words import Verb

GRACE_S = 120.0


def rungs(ladder: StopLadder, until_s: float, tick_s: float = 0.25, start_s: float = 1000.0) -> list[tuple[float, str]]:
    """Every action that became due, with its time."""
    found, at_s = [], 0.0
    while at_s <= until_s:
        rung = ladder.due(start_s + at_s)
        if rung != "none":
            found.append((at_s, str(rung)))
        at_s += tick_s
    return found


def test_without_a_request_nothing_is_ever_due() -> None:
    assert rungs(StopLadder(GRACE_S), 10_000, 10) == []


@pytest.mark.parametrize("verb", [verb for verb in Verb if not verb.is_stop])
def test_other_requests_do_not_start_a_stop(verb: Verb) -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, verb, 1.0))
    assert ladder.requested is None
    assert ladder.due(1e9) == "none"


@pytest.mark.parametrize(("verb", "grace_s"), [(Verb.STOP, NOW_GRACE_S), (Verb.STOP_AFTER_CHECKPOINT, GRACE_S)])
def test_term_is_due_once_after_the_first_grace_period_and_kill_after_the_second(verb: Verb, grace_s: float) -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, verb))
    found = rungs(ladder, grace_s + TERM_GRACE_S + 1)
    assert found[0] == (grace_s, "term")
    assert found[1] == (grace_s + TERM_GRACE_S, "kill")
    assert {rung for _, rung in found[1:]} == {"kill"}


def test_a_stop_now_replaces_a_stop_after_a_checkpoint_and_not_the_reverse() -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP_AFTER_CHECKPOINT))
    assert rungs(ladder, 50) == []
    ladder.notice(Request(2, Verb.STOP))
    ladder.notice(Request(3, Verb.STOP_AFTER_CHECKPOINT))
    assert ladder.requested == Request(2, Verb.STOP)
    assert rungs(ladder, 20, start_s=1051)[0] == (NOW_GRACE_S, "term")


def test_a_second_request_does_not_restart_the_grace_period() -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP))
    ladder.due(0.0)
    for number in range(2, 50):
        ladder.notice(Request(number, Verb.STOP))
    assert ladder.due(NOW_GRACE_S) == "term"


@pytest.mark.parametrize(
    ("step_s", "grace_s"), [(None, NOW_GRACE_S), (1.0, NOW_GRACE_S), (80.0, 120.0), (1e6, MOST_NOW_GRACE_S)]
)
def test_a_stop_now_waits_for_the_end_of_a_step(step_s: float | None, grace_s: float) -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP))
    assert ladder.due(0.0, step_s) == "none"
    assert ladder.due(grace_s - 0.25, step_s) == "none"
    assert ladder.due(grace_s, step_s) == "term"
    assert ladder.due(grace_s + TERM_GRACE_S, step_s) == "kill"


def test_the_grace_period_starts_when_an_engine_is_running() -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP_AFTER_CHECKPOINT))
    assert ladder.due(1e6) == "none", "the first look starts the clock"
    assert ladder.due(1e6 + GRACE_S) == "term"


def test_any_sequence_of_requests_only_escalates() -> None:
    draw = random.Random(20261120)
    for _ in range(300):
        ladder, now_s, height = StopLadder(draw.choice([0.0, 1.0, GRACE_S])), 0.0, 0
        for number in range(60):
            if draw.random() < 0.2:
                ladder.notice(Request(number, draw.choice(list(Verb))))
            now_s += draw.choice([0.0, 0.25, 3.0, 40.0])
            rung = ladder.due(now_s)
            assert ladder.requested is not None or rung == "none"
            if rung != "none":
                reached = {"term": 1, "kill": 2}[rung]
                assert reached == height + 1 or reached == height == 2
                height = reached
