"""Requests to a run, with the sentences about them; keys, buttons and commands all send them with this module.

A request is a small file in the run's `control/` folder. The engine takes it between two steps and answers with a
`control_applied` event, which the log shows. If no engine is running, the supervisor answers.

The module is light: it does not load the schema of recipes, so that screens can show its sentences early.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cockpit.launching.adoption import REQUEST, Standing, adopt, end_of, standing
from cockpit.provenance.trust import repair_hint, why_not_ours
from cockpit.text import formatting
from engines import control
from engines.run_dir import RunDir, RunDirError
from engines.words import Verb
from recipes.problems import OperatorError


class Outcome(Enum):
    """The outcome of a request."""

    SENT = "sent"
    """It was written, and a running engine takes it."""
    WAITING = "waiting"
    """It was written, and no engine is running yet: the next engine takes it, or the supervisor answers."""
    ENDED = "ended"
    """It was not written, because the run has already ended or is lost."""
    NOT_SENT = "not sent"
    """It could not be written."""


@dataclass(frozen=True)
class Reply:
    """The reply to a request: `sentence` says what happened, `hint` what follows or what to do."""

    outcome: Outcome
    sentence: str
    hint: str

    @property
    def sent(self) -> bool:
        """Whether the request was written to the run's folder."""
        return self.outcome in {Outcome.SENT, Outcome.WAITING}

    def require_sent(self) -> None:
        """Raise if the request was not sent.

        Raises:
            OperatorError: the request was not sent.
        """
        if not self.sent:
            raise OperatorError(self.sentence, self.hint)


STOP_AFTER_CHECKPOINT = "the engine writes a checkpoint at the next step and stops; resume continues from it"
STOP_NOW = "the engine stops at the next step; resume repeats the steps since the newest checkpoint"
STOP_WITHOUT_CHECKPOINTS = "A stage without checkpoints stops in both cases; resume runs it again."
"""The last sentence of both descriptions of a stop. Work without steps checks for requests at each progress report."""

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
"""What the engine does for each verb, for the operator."""
_VALUE_WORDS = {Verb.LEARNING_RATE: formatting.learning_rate, Verb.MAX_STEPS: formatting.whole}


def effect_of(verb: Verb, value: float | None = None) -> str:
    """What the engine does for the request."""
    return EFFECTS[verb].format(value=_VALUE_WORDS[verb](value) if verb in _VALUE_WORDS else "")


def send_request(run: RunDir, verb: Verb, value: float | None = None, *, by: str = "operator") -> Reply:
    """Send a request to a run; returns the reply. Starts a supervisor if the run's supervisor died.

    Args:
        run: the run.
        verb: what the engine is to do.
        value: the number of a verb that takes one.
        by: the sender, for the log.
    """
    try:
        ended = end_of(run)
        if ended is not None:
            hint = f"resume it: cockpit resume {run.id}"
            return Reply(Outcome.ENDED, f"{run.id}: the run has already ended ({ended})", hint)
        refusal = why_not_ours(run)
        if refusal:
            return Reply(Outcome.NOT_SENT, f"{run.id} is read-only: {refusal}", repair_hint(run))
        found = standing(run)
        if found is not Standing.SUPERVISED:
            run.require_writable_format()
        if found.is_lost:
            return _lost(run)
        control.put_request(run.control, verb, value, by=by)
    except (OSError, ValueError, RunDirError) as error:
        return Reply(Outcome.NOT_SENT, f"{run.id}: could not send the {verb} request: {error}", "nothing was changed")
    with suppress(OSError, RunDirError):  # the request was written; the next supervisor finds it
        adopt(run, REQUEST)
    sentence = f"{run.id}: {verb} requested; {effect_of(verb, value)}"
    if found is Standing.ENGINE_LIVES or _engine_lives(run):
        return Reply(Outcome.SENT, sentence, "the log will confirm it")
    return Reply(Outcome.WAITING, sentence, "no engine is running yet; the log will show the result")


def _engine_lives(run: RunDir) -> bool:
    """Whether the engine of a stage's newest attempt is running."""
    from cockpit.supervision.engine_process import engine_lives

    newest = ((stage, run.attempts(stage)) for stage in run.stage_names())
    return any(engine_lives(run, stage, attempts[-1]) for stage, attempts in newest if attempts)


def _lost(run: RunDir) -> Reply:
    hint = f"resume it: cockpit resume {run.id}"
    return Reply(Outcome.ENDED, f"{run.id} is lost: none of its processes is alive, so nothing takes a request", hint)
