"""The arguments and results of a stage's function: fields, inputs, folders, events, requests, outcomes."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

from engines import control
from engines.emitter import EventWriter
from engines.events.attempts import Phase, Progress, RanksPlaced
from engines.events.event import Event
from engines.events.runs import ControlApplied
from engines.events.writers import Warned
from engines.ranks.agreement import Beginning, disagreement
from engines.ranks.own import RankLostError
from engines.ranks.watched import read_ends
from engines.run_dir.paths import RunDir, taken_requests
from engines.words import IGNORED, Verb
from engines.world import ALONE, World
from recipes.graph import Origin
from recipes.stages.fields import StageFields
from recipes.stages.launch.fields import launch_of
from recipes.stages.registry import row_of

PROGRESS_INTERVAL_S = 0.2
_FAILURE_S = 1.0
"""How long after a signal of torchrun the record of the failed process may come."""
_LOOK_S = 0.05


class StopRequested(Exception):  # noqa: N818 - an outcome, not an error
    """The operator requested a stop, and the stage has stopped."""


class GuardTrippedError(Exception):
    """A guard refused a step; its `guard_tripped` event is already in the journal."""


class StageFailedError(Exception):
    """The stage finished its work and the result is wrong (a failed parity check, for example). The text is for
    operators."""


class InputsChangedError(Exception):
    """An input is not the one that an earlier attempt recorded. `lines` names the files."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class Input:
    """One input of the stage.

    `path` is absolute: the output folder of a stage or the path that the operator named; None for a hub id.
    `output` is the kind of content, as in `accepts`, when a stage made it. `manifest_sha256` identifies the content by
    `method`: the folder's manifest, or the contents of `files` (path inside the input, bytes, SHA-256).
    """

    field: str
    origin: Origin
    name: str
    path: Path | None
    output: str | None = None
    manifest_sha256: str | None = None
    method: str = "manifest"
    files: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that the attempt resumes from; `sha256` is the SHA-256 of its manifest."""

    attempt: int
    step: int
    path: Path
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """A file or folder in `out/` for use; `path` is relative to `out/`, "." is the folder itself."""

    name: str
    kind: str
    path: str


@dataclass(frozen=True)
class StageResult:
    """The result of a finished stage. Metric names end in their units."""

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)


S_co = TypeVar("S_co", bound=StageFields, covariant=True)


class StageFunction(Protocol):
    """The one function of a stage's module."""

    def __call__(self, ctx: StageContext[Any]) -> StageResult: ...


@dataclass
class StageContext(Generic[S_co]):
    """The data and operations that a stage's function may use.

    Attributes:
        stage: its fields, resolved.
        inputs: by field name; `adapters[0]`, … for a list.
        out: a new folder for the stage's output; the engine commits it when the stage returns.
        work: a new scratch folder of this attempt.
        resume: the checkpoint to resume from.
        learning_rate_scale: factor on the learning rate, below 1 after a guard tripped.
        first_start: local time at which the stage's first attempt started, in ISO form: the date that a chat template
            sees in every attempt; empty outside a run.
        guard_trips: attempts that a guard ended, since the operator's last start.
        declared: the fields of the recipe, where `stage` has others after memory ran out; None where it has not.
        phase_name: the phase that the attempt is in.
        world: the processes of the attempt. Every one has a context, and calls the same operations in the same order.
        checkpoints: the attempt's folder of checkpoints.
        fingerprint: of the stage's fields and inputs, once the inputs are recorded.
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
    declared: StageFields | None = None
    first_start: str = ""
    guard_trips: int = 0
    phase_name: str = ""
    test_faults: dict[str, Any] = field(default_factory=dict)
    world: World = ALONE
    _progress_due_s: float = 0.0
    _signal: int | None = None
    _signal_answered: bool = False
    _taken_before: set[int] | None = None

    def emit(self, event: Event) -> int:
        """Append an event to the journal; returns when it is written."""
        return self.writer.emit(event)

    def phase(self, name: str) -> None:
        """Report the phase that begins now."""
        self.phase_name = name
        self.emit(Phase(stage=self.stage_name, attempt=self.attempt, name=name))

    def warn(self, message: str) -> None:
        """Warn the operator; the work continues."""
        self.emit(Warned(message=message, stage=self.stage_name, attempt=self.attempt))

    def warn_of(self, field: str) -> Callable[[str], None]:
        """`warn` for what an input brings along, such as its tokenizer.

        What a stage of this run made has it from that stage's own input, where the stage warns of it.
        """
        return self.warn if self.inputs[field].origin != "stage" else lambda _message: None

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """Report work done, at most five times a second; the last call is always reported.

        Raises:
            StopRequested: the operator requested a stop.
        """
        now_s = time.monotonic()
        if now_s >= self._progress_due_s or (total is not None and done >= total):
            self._progress_due_s = now_s + PROGRESS_INTERVAL_S
            self.emit(Progress(stage=self.stage_name, attempt=self.attempt, done=done, total=total, unit=unit))
            self.check_stop()

    def check_stop(self) -> None:
        """Stop here if the operator requested it; for work without checkpoints.

        Other requests to a training wait here until it takes them at a step. The supervisor answers them if the attempt
        ends before.

        Raises:
            StopRequested: the operator requested a stop.
        """
        trains = row_of(self.stage).trains
        if not self.world.is_first:
            if not trains:
                self._stop_with_first()
            return  # the others end with the first: here they cannot wait for each other
        if self.world.size > 1 and self._signal is not None:
            self._require_others()
        for request in self._own_requests(lambda found: found.verb.is_stop or not trains):
            if request.verb.is_stop:
                origin = (
                    "from its beginning" if self.resume is None else f"from its checkpoint at step {self.resume.step}"
                )
                self.applied(request, f"stopping; a resume of the run starts this stage {origin}")
                raise StopRequested
            self.applied(request, f"{IGNORED}: a {self.stage.kind} stage has nothing to {request.verb}")

    def _require_others(self) -> None:
        """Refuse to take a signal for a stop where torchrun sent it because another process of this host has failed.

        Raises:
            RankLostError: one has.
        """
        ends = RunDir(self.run_root).ranks_json(self.stage_name, self.attempt)
        until_s = time.monotonic() + _FAILURE_S
        while not any(end.failed for end in read_ends(ends)):
            if time.monotonic() > until_s:
                return
            time.sleep(_LOOK_S)
        raise RankLostError("torchrun ends this process because another one has failed")

    def _stop_with_first(self) -> None:
        """Stop here if the first process has taken a stop of the operator, where it has this host's run.

        Raises:
            StopRequested: it has.
        """
        folder = RunDir(self.run_root).control
        if self._taken_before is None:
            self._taken_before = control.numbers_taken(folder)
        taken = control.pending(taken_requests(folder), seen=self._taken_before)
        if any(one.verb.is_stop and one.stage in {"", self.stage_name} for one in taken):
            raise StopRequested

    def requests(self, wanted: Callable[[control.Request], bool] = lambda _: True) -> Iterator[control.Request]:
        """New requests that are wanted, oldest first, each yielded once; a termination signal counts as a request.

        A request is taken only after the one before it was handled, so a paused stage finds its `continue` here.
        Several processes get the same requests at the same call: the first one reads them, and each one its signals.
        """
        if self.world.size == 1:
            yield from self._own_requests(wanted)
            return
        own = self._own_requests(wanted)
        while self.world.any((mine := next(own, None)) is not None):
            yield from (found for found in self.world.gather_objects(mine) if found is not None)

    @property
    def is_asked(self) -> bool:
        """Whether a request or a signal waits in this process; `requests` takes it."""
        signalled = self._signal is not None and not self._signal_answered
        return signalled or (self.world.is_first and bool(control.pending(RunDir(self.run_root).control)))

    def _own_requests(self, wanted: Callable[[control.Request], bool]) -> Iterator[control.Request]:
        """The requests that this process reads: the first one the operator's, each one its signals."""
        yield from self._read_requests(wanted) if self.world.is_first else ()
        if self._signal is not None and not self._signal_answered:
            self._signal_answered = True
            by = signal.Signals(self._signal).name + (f" to rank {self.world.rank}" if self.world.rank else "")
            yield control.Request(0, Verb.STOP_AFTER_CHECKPOINT, by=by)

    def _read_requests(self, wanted: Callable[[control.Request], bool]) -> Iterator[control.Request]:
        for request in control.pending(RunDir(self.run_root).control):
            if not wanted(request) or not control.take(RunDir(self.run_root).control, request):
                continue
            if request.stage in {"", self.stage_name}:
                yield request
            else:
                self.applied(request, f"{IGNORED}: it was sent for {request.stage}, and {self.stage_name} is running")

    def placed(self, strategy: str, devices: Sequence[str]) -> None:
        """Report how the processes of the attempt really share the training, and what each computes on, by rank.

        Every process calls it, at the same place, after it has connected.

        Raises:
            StageFailedError: it is not what the stage asks for, or the processes do not begin with the same.
        """
        asked, point = launch_of(self.stage), self.resume
        begins = None if point is None else (point.step, point.sha256)
        place = str(self.run_root if point is None else point.path)
        found = self.world.gather_objects(
            Beginning(socket.gethostname(), self.run_id, self.fingerprint, begins, str(self.run_root), place)
        )
        self.emit(
            RanksPlaced(
                stage=self.stage_name,
                attempt=self.attempt,
                world_size=self.world.size,
                strategy=strategy,
                devices=list(devices),
                host=found[0].host,
                run=found[0].run,
            )
        )
        if differs := disagreement(found):
            raise StageFailedError(differs)
        if (self.world.size, strategy) != (asked.world_size, asked.strategy):
            raise StageFailedError(
                f"{asked.words or 'one process'} asked for, and {self.world.size} processes with {strategy} started"
            )

    def applied(self, request: control.Request, effect: str, step: int | None = None) -> None:
        """Acknowledge a request with its effect."""
        self.emit(
            ControlApplied(
                request=request.words,
                by=request.by,
                effect=effect,
                step=step,
                stage=self.stage_name,
                number=request.number,
            )
        )

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Record a termination signal; it takes effect at the next step boundary."""
        self._signal = number
