"""Requests to a run, with the sentences about them; keys, buttons and commands all send them with this module.

A request is a small file in the run's `control/` folder. The engine takes it between two steps and answers with a
`control_applied` event, which the log shows. If no engine is running, the supervisor answers.

The module is light: it does not load the schema of recipes, so that screens can show its sentences early.
"""

from __future__ import annotations

import getpass
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from statistics import median

from cockpit.launching.adoption import REQUEST, Standing, adopt, end_of, standing
from cockpit.provenance.mark import works_elsewhere
from cockpit.provenance.trust import repair_hint, why_not_ours
from cockpit.runs.health import elsewhere_words
from cockpit.supervision.newest import NewestRecords, newest_records
from cockpit.text import formatting
from cockpit.text.safe_text import safe_text
from engines import control
from engines.events.steps import Step
from engines.json_text import read_json
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import Verb
from recipes.problems import OperatorError

ANSWER_S = 30.0
ANSWER_STEPS = 5
"""An engine takes a request between two steps: within half a minute, or within five steps if they are slow."""
ANSWER_BYTES = 8 << 20


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
    """The reply to a request: `sentence` says what happened, `hint` what follows or what to do.

    `number` and `by` identify the request in the journal, `patience_s` is the time within which an engine at its usual
    pace takes it, and `records` are the journal's records since it was sent.
    """

    outcome: Outcome
    sentence: str
    hint: str
    verb: Verb | None = None
    number: int = 0
    by: str = ""
    patience_s: float = ANSWER_S
    records: NewestRecords | None = None

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
    Verb.MAX_STEPS: "the stage ends at step {value}, or at the step it has reached if that is later",
}
"""What the engine does for each verb, for the operator."""
_VALUE_WORDS = {Verb.LEARNING_RATE: formatting.learning_rate, Verb.MAX_STEPS: formatting.whole}


_ALLOWED = {
    Verb.LEARNING_RATE: "the new peak, a number > 0 and ≤ 1",
    Verb.MAX_STEPS: "the step at which the stage ends, a whole number ≥ 1",
}


def effect_of(verb: Verb, value: float | None = None) -> str:
    """What the engine does for the request."""
    return EFFECTS[verb].format(value=_VALUE_WORDS[verb](value) if verb in _VALUE_WORDS else "")


def parsed(verb: Verb, given: str | None) -> tuple[float | None, str]:
    """The number or the text of a request, as given on the command line or in a dialog.

    Raises:
        OperatorError: a value is missing, superfluous, not a number, or out of range.
    """
    if verb.takes_text:
        return None, given or ""
    if not verb.takes_value:
        if given is not None:
            raise OperatorError(f"{verb} — takes no value; got {safe_text(given, 80)!r}", f"cockpit ctl RUN {verb}")
        return None, ""
    try:
        value = float(given or "")
    except ValueError:
        value = float("nan")
    whole = verb is Verb.MAX_STEPS
    right = value >= 1 and value == int(value) if whole and abs(value) < 1e15 else not whole and 0 < value <= 1
    if not right:
        example = "1000" if whole else formatting.exact(1e-4)
        got = "no value" if given is None else repr(safe_text(given, 80))
        raise OperatorError(
            f"{verb} — got {got}; allowed {_ALLOWED[verb]}", f"for example: cockpit ctl RUN {verb} {example}"
        )
    return value, ""


def sender(where: str = "") -> str:
    """Who sends a request from this process: user@host, and where (a key on the screen, for example)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}{', ' if where else ''}{where}"


def send_request(run: RunDir, verb: Verb, value: float | None = None, *, text: str = "", by: str = "") -> Reply:
    """Send a request to a run; returns the reply. Starts a supervisor if the run's supervisor died.

    Args:
        run: the run.
        verb: what the engine is to do.
        value: the number of a verb that takes one.
        text: the text of a verb that takes one.
        by: the sender, for the log; by default user@host.
    """
    by = by or sender()
    try:
        ended = end_of(run)
        if ended is not None:
            hint = f"resume it: cockpit resume {run.id}"
            return Reply(Outcome.ENDED, f"{run.id}: the run has already ended ({ended})", hint)
        why_not = why_not_ours(run)
        if why_not:
            return Reply(Outcome.NOT_SENT, f"{run.id} is read-only: {why_not}", repair_hint(run))
        found = standing(run)
        if found is not Standing.SUPERVISED:
            run.require_writable_format()
        if found.is_lost:
            return _lost(run)
        living = _living_stage(run)
        refusal = _moved(run, living)
        if refusal is None and living is not None and not verb.is_stop:
            refusal = _unsupported(run, verb, living)
        if refusal is not None:
            return refusal
        patience_s, records = answer_patience_s(run), NewestRecords(run.journal, most_bytes=ANSWER_BYTES)
        # A value is meant for the stage that the sender sees: the next one has other steps and another schedule.
        stage = living[0] if living is not None and verb.takes_value else ""
        request = control.put_request(run.control, verb, value, by, text, stage)
    except (OSError, ValueError, RunDirError) as error:
        return Reply(Outcome.NOT_SENT, f"{run.id}: could not send the {verb} request: {error}", "nothing was changed")
    with suppress(OSError, RunDirError):  # the request was written; the next supervisor finds it
        adopt(run, REQUEST)
    sentence = f"{run.id}: {verb} requested{stage and f' for {stage}'}; {effect_of(verb, value)}"
    outcome, hint = Outcome.SENT, "the log will confirm it"
    if living is None and found is not Standing.ENGINE_LIVES:
        outcome, hint = Outcome.WAITING, "no engine is running yet; the log will show the result"
    return Reply(outcome, sentence, hint, verb, request.number, by, patience_s, records)


def answer_patience_s(run: RunDir) -> float:
    """The time within which the run's engine takes a request, from the duration of its newest steps."""
    steps = [event.step_s for event in newest_records(run.journal) if isinstance(event, Step)]
    return max(ANSWER_S, ANSWER_STEPS * median(steps)) if steps else ANSWER_S


def _living_stage(run: RunDir) -> tuple[str, int] | None:
    """The stage and the attempt whose engine is running."""
    from cockpit.supervision.engine_process import engine_lives

    newest = ((stage, run.attempts(stage)) for stage in run.stage_names())
    return next(((s, found[-1]) for s, found in newest if found and engine_lives(run, s, found[-1])), None)


def _moved(run: RunDir, living: tuple[str, int] | None) -> Reply | None:
    """The refusal of a request that no process would see, because they work in another folder; else None."""
    from cockpit.supervision.engine_process import recorded_engine

    folder = works_elsewhere(run, None if living is None else recorded_engine(run, *living))
    if folder is None:
        return None
    hint = f"send it to that run: {folder}" if folder.exists() else f"move it back: mv {run.root} {folder}"
    return Reply(Outcome.NOT_SENT, f"{run.id}: {elsewhere_words(folder)}", hint)


def _unsupported(run: RunDir, verb: Verb, living: tuple[str, int]) -> Reply | None:
    """The refusal of a request that the running stage's engine would ignore; None if it may carry it out."""
    from recipes.stages.registry import STAGE_TYPES, controllable_kinds, kind_of

    try:
        tag = str(read_json(run.stage_json(*living)).get("tag"))
    except (OSError, ValueError, AttributeError):
        return None
    kinds = controllable_kinds(sampling=verb is Verb.SAMPLE)
    if tag not in STAGE_TYPES or kind_of(tag) in kinds:
        return None
    sentence = f"{run.id}: {living[0]} is running, and a {kind_of(tag)} stage does not support {verb}"
    return Reply(Outcome.NOT_SENT, sentence, f"{verb} works in stages of these kinds: {', '.join(sorted(kinds))}")


def _lost(run: RunDir) -> Reply:
    hint = f"resume it: cockpit resume {run.id}"
    return Reply(Outcome.ENDED, f"{run.id} is lost: none of its processes is alive, so nothing takes a request", hint)
