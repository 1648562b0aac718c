"""Events of a run and its stages: how they start and end, the operator's requests, the command at the end."""

from __future__ import annotations

import msgspec

from engines.events.event import Event
from engines.words import RunStatus, StartReason


class FieldChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A field of the recipe that an operator changed at a resume.

    `number` counts the changes of the run from 1. `stage` is empty for a field of the recipe itself. `old` and `new`
    are TOML, or `none`.
    """

    number: int
    stage: str
    field: str
    old: str
    new: str

    @property
    def sentence(self) -> str:
        """`tuned.learning_rate 2e-4 → 1e-4`; not safe to print before `safe_text`."""
        return (
            f"{self.stage}.{self.field} {self.old} → {self.new}"
            if self.stage
            else f"{self.field} {self.old} → {self.new}"
        )


class AcceptedInput(msgspec.Struct, frozen=True, kw_only=True):
    """An input that is not the recorded one, accepted by the operator. `files` names the first differences, `more`
    counts the rest; `sha256` identifies the accepted content."""

    stage: str
    field: str
    name: str
    sha256: str
    files: list[str] = []
    more: int = 0


class Adjusted(msgspec.Struct, frozen=True, kw_only=True):
    """A field that an attempt has another value of than the recipe, because an earlier attempt ran out of memory.

    `old` and `new` are TOML. `attempt` is the attempt that ran out of memory, `because` what it reported.
    """

    field: str
    old: str
    new: str
    attempt: int = 0
    because: str = ""

    @property
    def sentence(self) -> str:
        """`per_device_train_batch_size 8 → 4`; not safe to print before `safe_text`."""
        return f"{self.field} {self.old} → {self.new}"


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started"):
    """A supervisor started on the run: at launch, at an operator's resume, or to adopt it after a supervisor died."""

    run: str
    recipe: str
    reason: StartReason
    stages: list[str]
    kinds: list[str]
    redo: list[str] = []
    """stages that an operator requested to rerun (with the stages that depend on them)"""
    only: list[str] = []
    """stages to run; empty for all"""
    checkpoint: int | None = None
    """step from which an operator's resume continues"""
    checkpoint_stage: str | None = None
    parent: str | None = None
    changes: list[FieldChanged] = []
    """fields that the operator changed at this resume"""
    launch: int = 0
    """number of this supervisor among those of the run, from 1; it orders their records. 0 in older journals"""
    attempts: dict[str, int] = {}
    """the highest attempt number of each stage before this start"""
    accepted_inputs: list[AcceptedInput] = []
    """inputs that had changed, and that the operator accepted for this resume"""


class RunEnded(Event, frozen=True, kw_only=True, tag="run_ended"):
    """The run ended in `state`."""

    state: RunStatus
    reason: str = ""
    launch: int = 0
    """of the supervisor that ended it; see `RunStarted`"""


class StageStarted(Event, frozen=True, kw_only=True, tag="stage_started"):
    stage: str
    kind: str
    attempt: int = 1
    steps: int | None = None
    """optimizer steps planned, when known"""
    launch: int = 0
    """of the supervisor that started it; see `RunStarted`"""
    adjusted: list[Adjusted] = []
    """fields that this attempt has other values of than the recipe, oldest change first"""


class StageSucceeded(Event, frozen=True, kw_only=True, tag="stage_succeeded"):
    """The engine writes it after it has renamed out/ into place."""

    stage: str
    attempt: int
    fingerprint: str
    manifest_sha256: str
    metrics: dict[str, float | None] = {}


class StageFailed(Event, frozen=True, kw_only=True, tag="stage_failed"):
    """The supervisor writes it when no attempt is left, or when a gate refused the result (`refused`)."""

    stage: str
    reason: str
    refused: bool = False


class StageSkipped(Event, frozen=True, kw_only=True, tag="stage_skipped"):
    """The stage is already done (its fingerprint and manifest match) or was not requested."""

    stage: str
    reason: str


class ControlApplied(Event, frozen=True, kw_only=True, tag="control_applied"):
    """A request from `control/` was answered. `by` is who requested it, or the supervisor when that answered; `effect`
    is the result, `number` the request's number (0: a signal, or a record of an older version)."""

    request: str
    by: str
    effect: str
    step: int | None = None
    stage: str | None = None
    number: int = 0


class CommandEnded(Event, frozen=True, kw_only=True, tag="command_ended"):
    """A command of the recipe for the end of the run (`on_success`, `on_failure`) has ended, or was not started.

    `number` is that of the operator's launch or resume whose end it was started for: it is started once for each.
    `exit` is its status, negative for a signal; None if it is not known. `output` is the end of what it printed.
    """

    command: str
    number: int
    argv: list[str] = []
    exit: int | None = None
    detail: str = ""
    took_s: float | None = None
    output: str = ""
