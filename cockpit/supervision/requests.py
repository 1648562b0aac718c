"""Requests to a run: the one way to send them and the sentences about them, for keys, buttons and commands.

A request is a small file in the run's `control/` folder. The engine takes it between two steps and answers with a
`control_applied` event, which the log shows; the supervisor answers requests that no engine is left to take.

The module is light: a screen that shows the words loads no recipe's schema with it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cockpit.supervision.adoption import REQUEST, adopt
from cockpit.supervision.facts import RunFacts, read_facts
from cockpit.text import formatting
from engines import control
from engines.run_dir import RunDir, RunDirError, lock_is_held
from engines.words import Verb
from recipes.problems import OperatorError


class Outcome(Enum):
    """What came of a request."""

    SENT = "sent"
    """It is written, and an engine is running that takes it."""
    WAITING = "waiting"
    """It is written, and no engine is running yet: the next one takes it, or the supervisor answers."""
    ENDED = "ended"
    """The run has already ended: nothing was written."""
    NOT_SENT = "not sent"
    """It could not be written."""


@dataclass(frozen=True)
class Reply:
    """What came of a request, in words: `sentence` says what happened, `hint` what follows or what to do."""

    outcome: Outcome
    sentence: str
    hint: str

    @property
    def sent(self) -> bool:
        """Whether the request is in the run's folder."""
        return self.outcome in {Outcome.SENT, Outcome.WAITING}

    def require_sent(self) -> None:
        """Refuse to continue without it.

        Raises:
            OperatorError: the request was not sent.
        """
        if not self.sent:
            raise OperatorError(self.sentence, self.hint)


STOP_AFTER_CHECKPOINT = "the engine writes a checkpoint at the next step and stops; resume continues from it"
STOP_NOW = "the engine stops at the next step; resume repeats the steps since the newest checkpoint"
STOP_WITHOUT_CHECKPOINTS = "A stage without checkpoints stops in both cases; resume runs it again."
"""Ends the description of both ways to stop. Work that has no steps is asked as often as it reports progress."""

EFFECTS = {
    Verb.STOP: STOP_NOW,
    Verb.STOP_AFTER_CHECKPOINT: STOP_AFTER_CHECKPOINT,
    Verb.CHECKPOINT: "the engine writes a checkpoint at the next step",
    Verb.EVALUATE: "the engine evaluates at the next step",
    Verb.SAMPLE: "the engine samples text at the next step",
    Verb.PAUSE: "training pauses at the next step",
    Verb.CONTINUE: "training continues",
    Verb.LEARNING_RATE: "the peak learning rate becomes {value} at the next step",
    Verb.MAX_STEPS: "the stage ends at step {value}",
}
"""What the engine does with each verb, for the operator."""
_VALUE_WORDS = {Verb.LEARNING_RATE: formatting.learning_rate, Verb.MAX_STEPS: formatting.whole}


def effect_of(verb: Verb, value: float | None = None) -> str:
    """What the engine does when it takes the request."""
    return EFFECTS[verb].format(value=_VALUE_WORDS[verb](value) if verb in _VALUE_WORDS else "")


def send_request(run: RunDir, verb: Verb, value: float | None = None, *, by: str = "operator") -> Reply:
    """Send a request to a run and say what came of it. Starts a supervisor for a run that has lost its own.

    Args:
        run: the run.
        verb: what the engine is to do.
        value: the number of a verb that takes one.
        by: who asks, for the log.
    """
    try:
        facts = read_facts(run)
        if facts.has_ended:
            return _ended(run, facts)
        if not lock_is_held(run.supervisor_lock):
            run.require_writable_format()
        control.put_request(run.control, verb, value, by=by)
    except (OSError, ValueError, RunDirError) as error:
        return Reply(Outcome.NOT_SENT, f"{run.id}: could not send the {verb} request: {error}", "nothing was changed")
    with suppress(OSError, RunDirError):  # the request is written; the next supervisor finds it
        adopt(run, REQUEST)
    sentence = f"{run.id}: {verb} requested; {effect_of(verb, value)}"
    if _engine_lives(run, facts):
        return Reply(Outcome.SENT, sentence, "the log will confirm it")
    return Reply(Outcome.WAITING, sentence, "no engine is running yet; the log will say what came of it")


def _ended(run: RunDir, facts: RunFacts) -> Reply:
    state = f" ({facts.ended.state})" if facts.ended else ""
    hint = f"resume it: cockpit resume {run.id}"
    return Reply(Outcome.ENDED, f"{run.id}: the run has already ended{state}", hint)


def _engine_lives(run: RunDir, facts: RunFacts) -> bool:
    """Whether the engine of an attempt that has not ended is a living process."""
    from cockpit.supervision.engine_process import find_engine

    for name, stage in facts.stages.items():
        for attempt in stage.attempts.values():
            engine = None if attempt.reason else find_engine(run, name, attempt.number)
            if engine is not None:
                engine.close()
                return True
    return False
