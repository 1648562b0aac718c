"""What a stage's function is given, and what it gives back: its fields, inputs and folders, events, requests,
outcomes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from engines import control
from engines.emitter import EventWriter
from engines.events import ControlApplied, Event, Phase, Progress, Warned
from engines.run_dir import RunDir
from engines.words import IGNORED, Verb
from recipes import quantities
from recipes.graph import Origin
from recipes.stages.fields import StageFields
from recipes.stages.registry import row_of

PROGRESS_INTERVAL_S = 0.2


class StopRequested(Exception):  # noqa: N818 - an outcome, not an error
    """The operator asked the stage to stop, and it has."""


class GuardTrippedError(Exception):
    """A guard refused a step; its `guard_tripped` is in the journal already."""


class StageFailedError(Exception):
    """The stage did its work and found the result wrong (a parity that does not hold, say). The text is for
    operators."""


@dataclass(frozen=True)
class Input:
    """Where one of the stage's inputs is.

    `path` is absolute: the finished folder of a stage or what the operator named; None for a hub id.
    `output` is what it holds, by the words of `accepts`, when a stage made it.
    """

    field: str
    origin: Origin
    name: str
    path: Path | None
    output: str | None = None
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that the attempt resumes from; `sha256` is its manifest's."""

    attempt: int
    step: int
    path: Path
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """Something in `out/` for use; `path` is relative to it, "." is the whole folder."""

    name: str
    kind: str
    path: str


@dataclass(frozen=True)
class StageResult:
    """What a stage reports when it is done. Metric names end in their units."""

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)


S_co = TypeVar("S_co", bound=StageFields, covariant=True)


class StageFunction(Protocol):
    """The one function of a stage's module."""

    def __call__(self, ctx: StageContext[Any]) -> StageResult: ...


@dataclass
class StageContext(Generic[S_co]):
    """Everything a stage may know and do.

    Attributes:
        stage: its fields, resolved.
        inputs: by the name of the field, `adapters[0]`, … for a list.
        out: a new folder for what the stage makes; it is committed when the stage returns.
        work: a new folder for what only this attempt needs.
        resume: the checkpoint to resume from.
        learning_rate_scale: factor on the learning rate, below 1 after a guard tripped.
        checkpoints: the attempt's folder for them.
        fingerprint: of the stage's fields and inputs, as the supervisor computed it.
    """

    stage: S_co
    inputs: Mapping[str, Input]
    out: Path
    work: Path
    attempt: int
    resume: ResumePoint | None
    learning_rate_scale: float
    checkpoints: Path
    run_id: str
    stage_name: str
    run_root: Path
    writer: EventWriter
    fingerprint: str = ""
    test_faults: dict[str, Any] = field(default_factory=dict)
    _progress_due_s: float = 0.0
    _signal: int | None = None
    _signal_answered: bool = False

    def emit(self, event: Event) -> int:
        """Append an event; it is in the journal when this returns."""
        return self.writer.emit(event)

    def phase(self, name: str) -> None:
        """Name what the attempt is doing now."""
        self.emit(Phase(stage=self.stage_name, attempt=self.attempt, name=name))

    def warn(self, message: str) -> None:
        """Warn the operator of something that does not stop the work."""
        self.emit(Warned(message=message, stage=self.stage_name, attempt=self.attempt))

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """Report work done, at most five times a second and always the last.

        Raises:
            StopRequested: the operator asked to stop.
        """
        now_s = time.monotonic()
        if now_s >= self._progress_due_s or (total is not None and done >= total):
            self._progress_due_s = now_s + PROGRESS_INTERVAL_S
            self.emit(Progress(stage=self.stage_name, attempt=self.attempt, done=done, total=total, unit=unit))
            self.check_stop()

    def check_stop(self) -> None:
        """Between steps of work without checkpoints: end here if the operator requested a stop.

        Raises:
            StopRequested: it was.
        """
        for request in self.requests():
            if request.verb.is_stop:
                origin = "afresh" if self.resume is None else f"from its checkpoint of step {self.resume.step}"
                self.applied(request, f"stopping; this stage starts {origin} when the run is resumed")
                raise StopRequested
            known = row_of(self.stage).trains
            reason = "training has not begun" if known else f"a {self.stage.kind} stage has nothing to {request.verb}"
            self.applied(request, f"{IGNORED}: {reason}")

    def requests(self) -> Iterator[control.Request]:
        """New requests, oldest first; each is given once, and a termination signal is one of them.

        One is taken only when the one before it has been dealt with, so that a paused stage finds its `continue` here.
        """
        for request in control.pending(RunDir(self.run_root).control):
            if control.take(RunDir(self.run_root).control, request):
                yield request
        if self._signal is not None and not self._signal_answered:
            self._signal_answered = True
            yield control.Request(0, Verb.STOP_AFTER_CHECKPOINT, by=signal.Signals(self._signal).name)

    def applied(self, request: control.Request, effect: str, step: int | None = None) -> None:
        """Acknowledge a request with what came of it."""
        asked = request.verb if request.value is None else f"{request.verb} {quantities.exact(request.value)}"
        self.emit(ControlApplied(request=asked, by=request.by, effect=effect, step=step, stage=self.stage_name))

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Remember a termination signal; it acts at the next step boundary."""
        self._signal = number
