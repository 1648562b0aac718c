from __future__ import annotations

import random

import pytest

from cockpit.supervision.stop_ladder import NOW_GRACE_S, TERM_GRACE_S, StopLadder
from engines.control import Request
from engines.words import Verb

GRACE_S = 120.0


def rungs(ladder: StopLadder, until_s: float, tick_s: float = 0.25, start_s: float = 1000.0) -> list[tuple[float, str]]:
    """Every rung that fell due while the time went by, with its moment."""
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
def test_requests_that_are_no_stops_ask_for_none(verb: Verb) -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, verb, 1.0))
    assert ladder.asked is None
    assert ladder.due(1e9) == "none"


@pytest.mark.parametrize(("verb", "grace_s"), [(Verb.STOP, NOW_GRACE_S), (Verb.STOP_AFTER_CHECKPOINT, GRACE_S)])
def test_term_comes_once_after_the_grace_and_kill_after_the_next(verb: Verb, grace_s: float) -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, verb))
    found = rungs(ladder, grace_s + TERM_GRACE_S + 1)
    assert found[0] == (grace_s, "term")
    assert found[1] == (grace_s + TERM_GRACE_S, "kill")
    assert {rung for _, rung in found[1:]} == {"kill"}


def test_a_stop_now_shortens_the_wait_for_a_checkpoint_and_never_the_other_way_round() -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP_AFTER_CHECKPOINT))
    assert rungs(ladder, 50) == []
    ladder.notice(Request(2, Verb.STOP))
    ladder.notice(Request(3, Verb.STOP_AFTER_CHECKPOINT))
    assert ladder.asked == Request(2, Verb.STOP)
    assert rungs(ladder, 20, start_s=1051)[0] == (NOW_GRACE_S, "term")


def test_asking_again_starts_no_new_grace() -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP))
    ladder.due(0.0)
    for number in range(2, 50):
        ladder.notice(Request(number, Verb.STOP))
    assert ladder.due(NOW_GRACE_S) == "term"


def test_the_grace_begins_when_there_is_an_engine_to_wait_for() -> None:
    ladder = StopLadder(GRACE_S)
    ladder.notice(Request(1, Verb.STOP_AFTER_CHECKPOINT))
    assert ladder.due(1e6) == "none", "the first look starts the clock"
    assert ladder.due(1e6 + GRACE_S) == "term"


def test_whatever_is_asked_in_whatever_order_rungs_only_climb() -> None:
    draw = random.Random(20261120)
    for _ in range(300):
        ladder, now_s, height = StopLadder(draw.choice([0.0, 1.0, GRACE_S])), 0.0, 0
        for number in range(60):
            if draw.random() < 0.2:
                ladder.notice(Request(number, draw.choice(list(Verb))))
            now_s += draw.choice([0.0, 0.25, 3.0, 40.0])
            rung = ladder.due(now_s)
            assert ladder.asked is not None or rung == "none"
            if rung != "none":
                reached = {"term": 1, "kill": 2}[rung]
                assert reached == height + 1 or reached == height == 2
                height = reached
