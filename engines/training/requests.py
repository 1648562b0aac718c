"""The operator's requests during training: carried out at a step boundary and answered with their effect."""

from __future__ import annotations

import math
import time
from typing import Protocol

from engines.context import StageContext, StopRequested
from engines.control import Request
from engines.events.results import Evaluated
from engines.words import IGNORED, PHASE_PAUSED, PHASE_TRAINING, Verb
from recipes import quantities
from recipes.stages.registry import row_of
from recipes.stages.training import TrainingFields

PAUSE_POLL_S = 0.1
PAUSE_HEARTBEAT_S = 10.0


class Controllable(Protocol):
    """A training between two steps, with the operations that an operator may request."""

    ctx: StageContext[TrainingFields]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def last_step(self) -> int:
        """The step at which the stage ends by the present plan."""
        ...

    @property
    def newest_checkpoint(self) -> int | None:
        """The step of the newest checkpoint of the training; None before the first."""
        ...

    def save(self) -> bool: ...

    def finish_saving(self) -> None: ...

    def evaluate(self) -> Evaluated | None: ...

    def sample(self, prompt: str = "") -> bool: ...

    def set_learning_rate(self, peak: float) -> float: ...

    def set_max_steps(self, steps: int) -> int: ...


def handle_requests(session: Controllable) -> None:
    """Take all new requests, oldest first. While paused, wait here with a heartbeat and keep taking requests.

    Raises:
        StopRequested: one of the requests was a stop.
    """
    paused, heartbeat_s = False, 0.0
    while True:
        for request in session.ctx.requests():
            if request.verb in {Verb.PAUSE, Verb.CONTINUE}:
                paused = _pause_or_continue(session, request, paused=paused)
                heartbeat_s = time.monotonic() + PAUSE_HEARTBEAT_S
            else:
                _handle(session, request)
        if not paused:
            return
        time.sleep(PAUSE_POLL_S)
        if time.monotonic() >= heartbeat_s:
            heartbeat_s = time.monotonic() + PAUSE_HEARTBEAT_S
            session.ctx.phase(PHASE_PAUSED)


def _pause_or_continue(session: Controllable, request: Request, *, paused: bool) -> bool:
    """Whether the session is paused after the request."""
    wanted = request.verb is Verb.PAUSE
    if wanted == paused:
        session.ctx.applied(request, f"{IGNORED}: {'already paused' if paused else 'not paused'}", session.step)
        return paused
    if wanted:
        session.finish_saving()  # a machine may be turned off while a training is paused
    session.ctx.applied(request, "paused" if wanted else "continued", session.step)
    session.ctx.phase(PHASE_PAUSED if wanted else PHASE_TRAINING)
    return wanted


def _handle(session: Controllable, request: Request) -> None:
    match request.verb:
        case verb if verb.is_stop:
            _stop(session, request)
            return
        case Verb.CHECKPOINT:
            saved = session.save()
            effect = f"checkpoint step-{session.step}" if saved else "the checkpoint could not be written"
        case Verb.EVALUATE:
            result = session.evaluate()
            loss = None if result is None else result.loss
            effect = (
                f"{IGNORED}: the data has no val rows to evaluate on"
                if loss is None
                else f"val loss {quantities.loss(loss)}"
            )
        case Verb.SAMPLE:
            effect = "sampled" if session.sample(request.text) else f"{IGNORED}: {_why_no_sample(session)}"
        case Verb.LEARNING_RATE:
            effect = _learning_rate(session, request.value)
        case Verb.MAX_STEPS:
            effect = _max_steps(session, request.value)
        case _:
            effect = f"{IGNORED}: a {session.ctx.stage.kind} stage does not support {request.verb}"
    session.ctx.applied(request, effect, session.step)


def _stop(session: Controllable, request: Request) -> None:
    """Stop here. A stop after a checkpoint is refused when the checkpoint fails, except for a termination signal."""
    session.finish_saving()
    if request.verb is Verb.STOP:
        point = session.newest_checkpoint
        back = (
            f"continues from the checkpoint of step {point}"
            if point
            else "restarts from step 0: there is no checkpoint"
        )
        session.ctx.applied(request, f"stopping now; a resume {back}", session.step)
        raise StopRequested
    saved = session.save()
    if saved:
        session.ctx.applied(request, f"stopping after checkpoint step-{session.step}", session.step)
        raise StopRequested
    if request.number == 0:
        session.ctx.applied(request, "stopping; the checkpoint could not be written", session.step)
        raise StopRequested
    session.ctx.applied(request, f"{IGNORED}: the checkpoint could not be written; training continues", session.step)


def _learning_rate(session: Controllable, value: float | None) -> str:
    if value is None or not math.isfinite(value) or not 0 < value <= 1:
        return f"{IGNORED}: learning_rate — got {value}; allowed a number > 0 and ≤ 1"
    used = session.set_learning_rate(value)
    return f"peak learning rate is now {quantities.exact(value)}; the next step uses {quantities.exact(used)}"


def _max_steps(session: Controllable, value: float | None) -> str:
    before = session.last_step
    if value is None or not math.isfinite(value) or value < 1 or value != int(value):
        return f"{IGNORED}: max_steps — got {value}; allowed a whole number ≥ 1"
    return f"the stage ends at step {session.set_max_steps(int(value))}, not {before}"


def _why_no_sample(session: Controllable) -> str:
    kind = session.ctx.stage.kind
    return "give a prompt" if row_of(session.ctx.stage).samples else f"a {kind} stage cannot sample"
