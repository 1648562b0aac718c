"""The words that a run's processes, files, screens and exit codes share: each is spelled here and nowhere else.

On the wire a word is its text. The words of a journal are open: one that a newer version wrote is kept as it is, equals no
member, so that its record stays readable.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Self


class _OpenWord(StrEnum):
    """A word of a journal. `Word("text of a newer version")` is that text, and no error."""

    __repr__ = str.__repr__  # a word in a message or a digest reads as its text

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word


class RunStatus(_OpenWord):
    """The state of a run. All but `lost` are told by its journal; `lost` is seen by who looks for its processes."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REFUSED = "refused"
    """a gate refused the result of a stage"""
    LOST = "lost"
    """it says that it runs, and none of its processes lives"""

    @property
    def has_ended(self) -> bool:
        """Whether its journal says that it ended, one way or another."""
        return self in _ENDED

    @property
    def is_live(self) -> bool:
        """Whether work goes on or is about to begin."""
        return self in _LIVE

    @property
    def can_resume(self) -> bool:
        """Whether something is left to do, and nobody is doing it."""
        return self in _RESUMABLE


_ENDED = frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.STOPPED, RunStatus.REFUSED})
_LIVE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED})
_RESUMABLE = frozenset({RunStatus.STOPPED, RunStatus.FAILED, RunStatus.REFUSED, RunStatus.LOST})


class StageStatus(_OpenWord):
    """The state of a stage of a run."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REFUSED = "refused"
    SKIPPED = "skipped"

    @property
    def is_done(self) -> bool:
        """Whether its output may be used: it was made now, or stands from before."""
        return self in _DONE

    @property
    def has_ended(self) -> bool:
        """Whether it ran and ended, one way or another."""
        return self in _STAGE_ENDED


_DONE = frozenset({StageStatus.SUCCEEDED, StageStatus.SKIPPED})
_STAGE_ENDED = frozenset({StageStatus.SUCCEEDED, StageStatus.FAILED, StageStatus.STOPPED, StageStatus.REFUSED})


class EndReason(_OpenWord):
    """Why an attempt ended, as its engine or its supervisor tells it."""

    NOT_GIVEN = ""
    """it has not ended, or whoever recorded the end gave no reason"""
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    GUARD = "guard"
    ERROR = "error"
    OUT_OF_MEMORY = "out_of_memory"
    REFUSED = "refused"
    KILLED = "killed"
    """by a signal"""
    DIED = "died"
    """with an exit status and without a reason"""
    NOT_STARTED = "not_started"
    """it was announced, and its supervisor died before there was a process"""
    UNKNOWN = "unknown"
    """no supervisor saw its end"""

    @property
    def says_nothing(self) -> bool:
        """Whether another account of the same end is to be preferred."""
        return self in _SAYS_NOTHING

    @property
    def is_engines_account(self) -> bool:
        """Whether an engine says this of itself; its supervisor, which alone knows the exit status, repeats it."""
        return self in _ENGINES_ACCOUNT

    @property
    def is_engines_failure(self) -> bool:
        """Whether an engine says this of itself when its stage has no usable result."""
        return self in _ENGINES_FAILURE


_SAYS_NOTHING = frozenset({EndReason.NOT_GIVEN, EndReason.UNKNOWN})
_ENGINES_FAILURE = frozenset({EndReason.GUARD, EndReason.ERROR, EndReason.REFUSED})
_ENGINES_ACCOUNT = _SAYS_NOTHING | _ENGINES_FAILURE | {EndReason.SUCCEEDED, EndReason.STOPPED}


class StartReason(_OpenWord):
    """Why a supervisor took up a run."""

    LAUNCH = "launch"
    RESUME = "resume"
    ADOPT = "adopt"

    @property
    def is_operators(self) -> bool:
        """Whether an operator asked for it; attempts are counted from there."""
        return self != StartReason.ADOPT


class WriterRole(_OpenWord):
    """Which of a run's processes writes."""

    ENGINE = "engine"
    SUPERVISOR = "supervisor"
    SAMPLER = "sampler"
    UNKNOWN = ""
    """the record that opens the writer cannot be read"""

    def tells_for_supervisor(self, exit_status: int | None) -> bool:
        """Whether an account of an attempt's end by this writer is the supervisor's, else it is the engine's.

        Of a writer whose role is not known, the one that knows the exit status is the supervisor: no engine does.
        """
        return self == WriterRole.SUPERVISOR or (self == WriterRole.UNKNOWN and exit_status is not None)


class GateResult(_OpenWord):
    """What came of a gate."""

    PASS = "pass"  # noqa: S105 - a word, not a password
    FAIL = "fail"
    NOT_MEASURED = "not_measured"
    """which never passes"""


class Verb(StrEnum):
    """What an operator may ask of a running engine. Files with other verbs are ignored."""

    STOP = "stop"
    STOP_AFTER_CHECKPOINT = "stop-after-checkpoint"
    CHECKPOINT = "checkpoint"
    EVALUATE = "evaluate"
    SAMPLE = "sample"
    PAUSE = "pause"
    CONTINUE = "continue"
    LEARNING_RATE = "learning-rate"
    MAX_STEPS = "max-steps"

    __repr__ = str.__repr__

    @property
    def is_stop(self) -> bool:
        """Whether the engine ends on it."""
        return self in _STOPS

    @property
    def takes_value(self) -> bool:
        """Whether a request has a number with it."""
        return self in _WITH_VALUE

    @classmethod
    def _missing_(cls, value: object) -> Verb:
        raise ValueError(f"control verb — got {value!r}; allowed {', '.join(cls)}")

    @classmethod
    def of(cls, text: str) -> Verb | None:
        """The verb at the beginning of a request's text ("learning-rate 0.0001"); None when it is none."""
        first = text.split(maxsplit=1)[:1]
        return cls(first[0]) if first and first[0] in _VERBS else None


_VERBS = frozenset(verb.value for verb in Verb)
_STOPS = frozenset({Verb.STOP, Verb.STOP_AFTER_CHECKPOINT})
_WITH_VALUE = frozenset({Verb.LEARNING_RATE, Verb.MAX_STEPS})

IGNORED = "ignored"
"""How the effect of a request begins that was answered and not done."""

PHASE_PAUSED = "paused"
PHASE_TRAINING = "training"
"""Phases that a paused engine goes through; all others are free text."""


class ExitCode(IntEnum):
    """How a process of ours ends: the command line, a supervisor, an engine."""

    DONE = 0
    FAILED = 1
    """the run, or the work, failed"""
    MISTAKE = 2
    """the operator's: a bad recipe, a run that is locked, nothing to resume, a missing package"""
    REFUSED = 3
    """by a gate"""
    INTERRUPTED = 130
    """left or stopped before the end"""


def exit_code_of(status: RunStatus) -> ExitCode:
    """The exit code of a command that followed a run to its end.

    Raises:
        KeyError: the run has not ended.
    """
    return _EXIT_CODES[status]


_EXIT_CODES = {
    RunStatus.SUCCEEDED: ExitCode.DONE,
    RunStatus.FAILED: ExitCode.FAILED,
    RunStatus.REFUSED: ExitCode.REFUSED,
    RunStatus.STOPPED: ExitCode.INTERRUPTED,
}
