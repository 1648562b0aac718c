"""The answer to a request: what the engine did, or that it has not taken the request within the stated time."""

from __future__ import annotations

import time
from collections.abc import Callable

from cockpit.launching.requests import Reply
from cockpit.runs.reader import RunReader, read_now
from cockpit.text import formatting as fmt
from engines import control
from engines.events.runs import ControlApplied, RunEnded
from engines.run_dir.paths import RunDir
from engines.words import IGNORED, Verb

POLL_S = 0.2


def wait_for_answer(
    reply: Reply, *, patience_s: float | None = None, stopped: Callable[[], bool] = lambda: False
) -> ControlApplied | None:
    """Wait for the answer to a request that was sent; None if none came in time or before the run ended, or if
    `stopped` became true.

    Args:
        reply: the reply of `send_request`.
        patience_s: how long; by default the time that the reply states.
        stopped: whether the caller no longer wants the answer.
    """
    give_up_s = time.monotonic() + (reply.patience_s if patience_s is None else patience_s)
    while True:
        ended = False
        for event in reply.records.read() if reply.records is not None else ():
            if isinstance(event, ControlApplied) and answers(event, reply):
                return event
            ended = ended or isinstance(event, RunEnded)
        if ended or stopped() or time.monotonic() >= give_up_s:
            return None
        time.sleep(POLL_S)


def answers(event: ControlApplied, reply: Reply) -> bool:
    """Whether an event answers this request. Engines of older versions name no number."""
    if event.number:
        return event.number == reply.number
    return event.by == reply.by and Verb.of(event.request) is reply.verb


def was_ignored(event: ControlApplied) -> bool:
    """Whether the answer says that nothing was done."""
    return event.effect.startswith(IGNORED)


def answer_words(event: ControlApplied) -> str:
    """The answer in one line."""
    return f"{event.request}{'' if event.step is None else f' at step {event.step}'}: {event.effect}"


def not_taken_words(run: RunDir, reply: Reply, waited_s: float) -> str:
    """Why a request was not taken, from the run's health; the request stays in effect.

    Args:
        run: the run.
        reply: the reply of `send_request`.
        waited_s: how long the caller waited.
    """
    if reply.number in control.numbers_taken(run.control):
        return f"{reply.verb}: taken; the log has its result"
    state = read_now(run).state.state
    if state.has_ended:
        return f"{reply.verb} not taken: the run ended first ({state}); the request stays in effect for a resume"
    return f"{reply.verb} not taken after {fmt.duration(waited_s)}: {engine_words(run)}; the request stays in effect"


def engine_words(run: RunDir) -> str:
    """What the run's engine does at present, in a part of a sentence."""
    reader = RunReader(run, indexed=True)
    reader.catch_up()
    health = reader.health(reader.look())
    if health.silence_s is None:
        return health.line
    return f"{health.line}; last progress {fmt.ago(health.silence_s)}"
