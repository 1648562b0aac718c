"""The words that a run's processes, files, screens and exit codes share. No other module spells them.

On the wire a word is its text. The words of a journal are open: a word from a newer version keeps its text and equals
no member, so its record stays readable.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Self


class _OpenWord(StrEnum):
    """A word of a journal. `Word("text of a newer version")` is that text and raises nothing."""

    __repr__ = str.__repr__  # a word appears in a message or a digest as its text

    def __reduce_ex__(self, _protocol: object) -> tuple[type[Self], tuple[str]]:
        """Copied and pickled by its text: Python 3.11.2 does it by the member's name, which a newer word lacks."""
        return type(self), (str(self),)

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word


class RunStatus(_OpenWord):
    """The state of a run. The journal records all states except `lost`, which follows from the processes."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    REFUSED = "refused"
    """a gate refused the result of a stage"""
    LOST = "lost"
    """its journal says that it runs, but none of its processes is alive"""

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, with any result, by its journal.

        A word that this version does not know is one in which a newer version ended the run: no other record names a
        run's state.
        """
        return self not in _NOT_ENDED

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a usable result, and not because an operator requested it."""
        return self in _FAILED

    @property
    def is_live(self) -> bool:
        """Whether the run works, waits for the operator, or is about to begin."""
        return self in _LIVE

    @property
    def can_resume(self) -> bool:
        """Whether the run is not live and has work left."""
        return self in _RESUMABLE


_FAILED = frozenset({RunStatus.FAILED, RunStatus.REFUSED})
_LIVE = frozenset({RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED})
_NOT_ENDED = _LIVE | {RunStatus.LOST}
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
        """Whether its output may be used: this run or an earlier one made it."""
        return self in _DONE

    @property
    def has_ended(self) -> bool:
        """Whether the stage ran and ended, with any result."""
        return self in _STAGE_ENDED

    @property
    def has_failed(self) -> bool:
        """Whether it ended without a usable result, and not because an operator requested it."""
        return self in _STAGE_FAILED


_DONE = frozenset({StageStatus.SUCCEEDED, StageStatus.SKIPPED})
_STAGE_FAILED = frozenset({StageStatus.FAILED, StageStatus.REFUSED})
_STAGE_ENDED = frozenset({StageStatus.SUCCEEDED, StageStatus.FAILED, StageStatus.STOPPED, StageStatus.REFUSED})


class EndReason(_OpenWord):
    """Why an attempt ended, by the record of its engine or of its supervisor."""

    NOT_GIVEN = ""
    """it has not ended, or the record of its end has no reason"""
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    GUARD = "guard"
    ERROR = "error"
    OUT_OF_MEMORY = "out_of_memory"
    REFUSED = "refused"
    INPUTS_CHANGED = "inputs_changed"
    """an input is not the one that an earlier attempt recorded; a retry would train on other data"""
    KILLED = "killed"
    """by a signal"""
    DIED = "died"
    """with an exit status and without a reason"""
    NOT_STARTED = "not_started"
    """its supervisor announced it and died before it started the process"""
    UNKNOWN = "unknown"
    """no supervisor observed its end"""
    RANK_LOST = "rank_lost"
    """an exchange with another process of the attempt failed: that one has ended, or cannot be reached"""

    @property
    def is_unspecific(self) -> bool:
        """Whether another record of the same end is preferred."""
        return self in _UNSPECIFIC

    @property
    def is_from_engine(self) -> bool:
        """Whether engines record this themselves; the supervisor repeats it with the exit status."""
        return self in _FROM_ENGINE

    @property
    def is_failure_from_engine(self) -> bool:
        """Whether engines record this themselves when a stage has no usable result."""
        return self in _FAILURE_FROM_ENGINE


_UNSPECIFIC = frozenset({EndReason.NOT_GIVEN, EndReason.UNKNOWN, EndReason.RANK_LOST})
_FAILURE_FROM_ENGINE = frozenset({EndReason.GUARD, EndReason.ERROR, EndReason.REFUSED, EndReason.INPUTS_CHANGED})
_FROM_ENGINE = _UNSPECIFIC | _FAILURE_FROM_ENGINE | {EndReason.SUCCEEDED, EndReason.STOPPED}


class MemoryEnd(_OpenWord):
    """Whether a killed process ran out of memory, by what the kernel reports."""

    UNKNOWN = ""
    """nothing says so: any process can send SIGKILL"""
    PROVEN = "proven"
    """the kernel counted a kill in the process's own control group, or recorded one of this process"""
    PROBABLE = "probable"
    """the kernel killed a process of this machine for memory while it ran"""


class StartReason(_OpenWord):
    """Why a supervisor started to work on a run."""

    LAUNCH = "launch"
    RESUME = "resume"
    ADOPT = "adopt"

    @property
    def is_from_operator(self) -> bool:
        """Whether an operator requested it; the retry limit counts attempts from there."""
        return self != StartReason.ADOPT


class WriterRole(_OpenWord):
    """Which process of a run writes."""

    ENGINE = "engine"
    SUPERVISOR = "supervisor"
    SAMPLER = "sampler"
    UNKNOWN = ""
    """the record that opens the writer cannot be read"""

    def is_supervisors_record(self, exit_status: int | None) -> bool:
        """Whether this writer's record of an attempt's end comes from the supervisor; otherwise the engine wrote it.

        A writer of unknown role that records an exit status is the supervisor: an engine cannot know its own.
        """
        return self == WriterRole.SUPERVISOR or (self == WriterRole.UNKNOWN and exit_status is not None)


class GateResult(_OpenWord):
    """The result of a gate."""

    PASS = "pass"  # noqa: S105 - a word, not a password
    FAIL = "fail"
    NOT_MEASURED = "not_measured"
    """counts as not passed"""


class HealthWord(_OpenWord):
    """How a run that has not ended is doing, by its engine's own records. A phase's name is a word here too."""

    STARTING = "starting"
    """a supervisor works, and no engine has written yet"""
    RUNNING = "running"
    SLOW = "slow"
    """steps take much longer than usual"""
    WAITING_FOR_DATA = "waiting for data"
    PAUSED = "paused"
    STALLED = "stalled"
    """no progress for much longer than usual"""
    HUNG = "hung"
    """no progress for much longer than usual, and the engine uses no CPU"""
    SUSPENDED = "suspended"
    """the engine's process is stopped by a signal (SIGSTOP)"""
    ENGINE_ENDED = "engine ended"
    """the engine's process has ended, and the supervisor is stopped (SIGSTOP) and has not recorded it"""
    UNKNOWN = "unknown"
    """its records cannot be written: the disk of the run is full"""

    @property
    def needs_attention(self) -> bool:
        """Whether the run makes no progress, or too little, for a reason that nothing has declared."""
        return self in {HealthWord.SLOW, HealthWord.UNKNOWN} or self.stands_still

    @property
    def stands_still(self) -> bool:
        """Whether the run makes no progress for a reason that nothing has declared."""
        return self in _STANDING


_STANDING = frozenset({HealthWord.STALLED, HealthWord.HUNG, HealthWord.SUSPENDED, HealthWord.ENGINE_ENDED})


class Verb(StrEnum):
    """What an operator may request from a running engine. Files with other verbs are ignored."""

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
        """Whether it ends the engine."""
        return self in _STOPS

    @property
    def takes_value(self) -> bool:
        """Whether a request needs a number."""
        return self in _WITH_VALUE

    @property
    def takes_text(self) -> bool:
        """Whether a request may have a text."""
        return self is Verb.SAMPLE

    @classmethod
    def _missing_(cls, value: object) -> Verb:
        raise ValueError(f"control verb — got {value!r}; allowed {', '.join(cls)}")

    @classmethod
    def of(cls, text: str) -> Verb | None:
        """The verb that a request's text begins with ("learning-rate 0.0001"); None for an unknown verb."""
        first = text.split(maxsplit=1)[:1]
        return cls(first[0]) if first and first[0] in _VERBS else None


_VERBS = frozenset(verb.value for verb in Verb)
_STOPS = frozenset({Verb.STOP, Verb.STOP_AFTER_CHECKPOINT})
_WITH_VALUE = frozenset({Verb.LEARNING_RATE, Verb.MAX_STEPS})

IGNORED = "ignored"
"""First word of the effect of a request that was answered but not carried out."""

PHASE_PAUSED = HealthWord.PAUSED.value
PHASE_TRAINING = "training"
PHASE_WAITING = HealthWord.WAITING_FOR_DATA.value
PHASE_EVALUATING = "evaluating"
PHASE_SAMPLING = "sampling"
PHASE_SAVING = "saving"
PASSING_PHASES = frozenset({PHASE_EVALUATING, PHASE_SAMPLING, PHASE_SAVING})
"""Phases that readers know by name: paused, continued, waiting, and the work between two steps, whose results are
events of their own. Other phases are free text."""


class ExitCode(IntEnum):
    """Exit status of the command line, a supervisor and an engine."""

    DONE = 0
    FAILED = 1
    """the run or the command's work failed"""
    MISTAKE = 2
    """wrong usage: an invalid recipe, a locked run, nothing to resume, a missing package"""
    REFUSED = 3
    """a gate failed"""
    INTERRUPTED = 130
    """the command detached or the run was stopped before the end"""


def exit_code_of(status: RunStatus) -> ExitCode:
    """The exit code of a command that follows a run to its end.

    An end of a newer version is not known to be a success.

    Raises:
        ValueError: the run has not ended.
    """
    if not status.has_ended:
        raise ValueError(f"the run has not ended: {status}")
    return _EXIT_CODES.get(status, ExitCode.FAILED)


_EXIT_CODES = {
    RunStatus.SUCCEEDED: ExitCode.DONE,
    RunStatus.FAILED: ExitCode.FAILED,
    RunStatus.REFUSED: ExitCode.REFUSED,
    RunStatus.STOPPED: ExitCode.INTERRUPTED,
}
