"""The words that a run's processes, files, screens and exit codes share: each is spelled here and nowhere else.

On the wire a word is its text. The words of a journal are open: one that a newer version wrote is kept as it is, equals
no
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
    """The state of a run. The journal records all of them but `lost`, which follows from a look at the processes."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REFUSED = "refused"
    """a gate refused the result of a stage"""
    LOST = "lost"
    """its journal says that it runs, and none of its processes is alive"""

    @property
    def has_ended(self) -> bool:
        """Whether its journal says that it ended, one way or another."""
        return self in _ENDED

    @property
    def is_live(self) -> bool:
        """Whether it works, waits for the operator, or is about to begin."""
        return self in _LIVE

    @property
    def can_resume(self) -> bool:
        """Whether it is not live and has work left."""
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
    """Why an attempt ended, as its engine or its supervisor recorded it."""

    NOT_GIVEN = ""
    """it has not ended, or the record of its end has no reason"""
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
        """Whether another record of the same end is preferred."""
        return self in _SAYS_NOTHING

    @property
    def is_from_engine(self) -> bool:
        """Whether engines record this themselves; the supervisor repeats it with the exit status."""
        return self in _FROM_ENGINE

    @property
    def is_failure_from_engine(self) -> bool:
        """Whether engines record this themselves when a stage has no usable result."""
        return self in _FAILURE_FROM_ENGINE


_SAYS_NOTHING = frozenset({EndReason.NOT_GIVEN, EndReason.UNKNOWN})
_FAILURE_FROM_ENGINE = frozenset({EndReason.GUARD, EndReason.ERROR, EndReason.REFUSED})
_FROM_ENGINE = _SAYS_NOTHING | _FAILURE_FROM_ENGINE | {EndReason.SUCCEEDED, EndReason.STOPPED}


class StartReason(_OpenWord):
    """Why a supervisor started on a run."""

    LAUNCH = "launch"
    RESUME = "resume"
    ADOPT = "adopt"

    @property
    def is_operators(self) -> bool:
        """Whether an operator requested it; attempts are counted from there."""
        return self != StartReason.ADOPT


class WriterRole(_OpenWord):
    """Which of a run's processes writes."""

    ENGINE = "engine"
    SUPERVISOR = "supervisor"
    SAMPLER = "sampler"
    UNKNOWN = ""
    """the record that opens the writer cannot be read"""

    def is_supervisors_record(self, exit_status: int | None) -> bool:
        """Whether this writer's record of an attempt's end is the supervisor's; otherwise it is the engine's.

        A writer of unknown role that gives an exit status is the supervisor: an engine never knows its own.
        """
        return self == WriterRole.SUPERVISOR or (self == WriterRole.UNKNOWN and exit_status is not None)


class GateResult(_OpenWord):
    """The result of a gate."""

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
        """The verb at the beginning of a request's text ("learning-rate 0.0001"); None when there is no such verb."""
        first = text.split(maxsplit=1)[:1]
        return cls(first[0]) if first and first[0] in _VERBS else None


_VERBS = frozenset(verb.value for verb in Verb)
_STOPS = frozenset({Verb.STOP, Verb.STOP_AFTER_CHECKPOINT})
_WITH_VALUE = frozenset({Verb.LEARNING_RATE, Verb.MAX_STEPS})

IGNORED = "ignored"
"""First word of the effect of a request that was answered and not carried out."""

PHASE_PAUSED = "paused"
PHASE_TRAINING = "training"
"""Phases that a paused engine goes through; all others are free text."""


class ExitCode(IntEnum):
    """Exit status of the command line, a supervisor and an engine."""

    DONE = 0
    FAILED = 1
    """the run, or the work, failed"""
    MISTAKE = 2
    """the operator's: a bad recipe, a run that is locked, nothing to resume, a missing package"""
    REFUSED = 3
    """by a gate"""
    INTERRUPTED = 130
    """detached or stopped before the end"""


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
