"""The facts of one writer of a journal: the per-writer half of the fold.

Order matters within a writer and not between writers, so the state of a run is the collection of its writers' facts:
in every interleaving, each of these objects sees the same sequence. `cockpit.runs.combine` combines them.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from cockpit.columns.column import Column, in_memory
from cockpit.runs.sequence import Numbers
from cockpit.runs.series import Series
from engines.events.attempts import AttemptStarted, Phase, Progress, RankReport
from engines.events.kinds import AnyEvent
from engines.events.machine import MachineSampled
from engines.events.results import ArtifactCommitted, Evaluated, GateChecked, SampledText
from engines.events.runs import StageSucceeded
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.events.writers import Warned, WriterOpened
from engines.words import PASSING_PHASES, WriterRole

LOG_LINES = 2000
"""Events that are kept per writer for the log pane; older ones stay in the journal."""
SAMPLES = 50
RATE_POINTS = 64

AttemptKey: TypeAlias = tuple[str, int]
Work: TypeAlias = (
    Step
    | Progress
    | Phase
    | SampledText
    | AttemptStarted
    | Evaluated
    | CheckpointCommitted
    | GuardTripped
    | GateChecked
    | ArtifactCommitted
    | StageSucceeded
)
"""Records that only an engine writes, and only when it made progress in the attempt that they name.

The removal of a checkpoint names the attempt that wrote it, which may be an earlier one.
"""
_LIFECYCLE_WORK = (
    AttemptStarted,
    Evaluated,
    CheckpointCommitted,
    GuardTripped,
    GateChecked,
    ArtifactCommitted,
    StageSucceeded,
)
COLUMNS = {"loss": "d", "learning_rate": "d", "grad_norm": "d", "step_s": "d", "tokens_per_second": "f", "t": "d"}
"""The columns of steps, and the type of their arrays: 32 bits for what is derived and drawn with a few digits."""


class Track:
    """The steps, progress and phase of one attempt, from one writer. All arrays have the same positions."""

    def __init__(self) -> None:
        self.steps: Column = array("d")
        self.columns: dict[str, Column] = {name: array(kind) for name, kind in COLUMNS.items()}
        self.absent: dict[str, array[int]] = {name: array("q") for name in COLUMNS}
        self.metrics: dict[str, Series] = {}
        self.last_step: Step | None = None
        self.progress: Progress | None = None
        self.rate: deque[tuple[float, float]] = deque(maxlen=RATE_POINTS)
        self.phase: Phase | None = None
        self._series: dict[str, Series] = {}

    def step(self, event: Step) -> None:
        """Add a step; the hot path of every replay."""
        loss, rate, norm = event.loss, event.learning_rate, event.grad_norm
        if loss is None or rate is None or norm is None:
            at = len(self.steps)
            for name, value in (("loss", loss), ("learning_rate", rate), ("grad_norm", norm)):
                if value is None:
                    self.absent[name].append(at)
            loss, rate, norm = (math.nan if v is None else v for v in (loss, rate, norm))
        columns = self.columns
        columns["tokens_per_second"].append(self._tokens_per_second(event))
        self.steps.append(event.step)
        columns["loss"].append(loss)
        columns["learning_rate"].append(rate)
        columns["grad_norm"].append(norm)
        columns["step_s"].append(event.step_s)
        columns["t"].append(event.t)
        self.last_step = event
        if event.data_wait_s is not None:
            self._metric("data_wait_s", event.step, event.data_wait_s)
        if event.metrics:
            for name, value in event.metrics.items():
                self._metric(name, event.step, value)

    def names(self) -> list[str]:
        """Names of the series that have values."""
        if not len(self.steps):
            return []
        core = [
            name
            for name in ("loss", "learning_rate", "grad_norm", "step_s", "tokens_per_second")
            if self._present(name)
        ]
        return core + sorted(self.metrics)

    def series(self, name: str) -> Series | None:
        """A series over steps: a column or a metric."""
        if name in self.metrics:
            return self.metrics[name]
        if name not in self.columns:
            return None
        if name not in self._series:
            self._series[name] = Series(self.steps, self.columns[name], self.absent[name])
        return self._series[name]

    def copy(self) -> Track:
        """An independent track with the same content."""
        twin = Track()
        twin.steps = in_memory(self.steps)
        twin.columns = {name: in_memory(column) for name, column in self.columns.items()}
        twin.absent = {name: indexes[:] for name, indexes in self.absent.items()}
        for name, series in self.metrics.items():
            _, y, absent = series.given
            twin.metrics[name] = (
                Series(twin.steps, in_memory(y), absent[:]) if self.is_aligned(series) else series.copy()
            )
        twin.last_step, twin.progress, twin.phase = self.last_step, self.progress, self.phase
        twin.rate = self.rate.copy()
        return twin

    def canonical(self) -> list[Any]:
        """A form of the facts that is equal if and only if the facts are equal."""
        numbers = [array_.tobytes() for name in COLUMNS for array_ in (self.columns[name], self.absent[name])]
        rest = [_series_bytes(self.metrics), repr(self.progress), repr(self.phase)]
        return [self.steps.tobytes(), *numbers, *rest]

    def _present(self, name: str) -> bool:
        return name not in self.absent or len(self.absent[name]) < len(self.steps)

    def is_aligned(self, series: Series) -> bool:
        """Whether a metric was measured at every step so far, so that it shares the steps' positions."""
        x, y, _ = series.given
        return x is self.steps and len(y) == len(x)

    def _metric(self, name: str, step: int, value: float | None) -> None:
        """Add a value of a step that is already in `steps`."""
        series = self.metrics.get(name)
        if series is None:
            series = self.metrics[name] = Series(self.steps if len(self.steps) == 1 else None)
        x, y, absent = series.given
        if x is not self.steps:
            series.append(step, value)
        elif len(y) == len(x) - 1:
            series.append_value(value)
        else:  # it was left out of a step, or is twice in one: from now on it has positions of its own
            series = self.metrics[name] = Series(in_memory(x)[: len(y)], y, absent)
            series.append(step, value)

    def _tokens_per_second(self, event: Step) -> float:
        """Tokens per second of a step; NaN and absent for the first step of a resumed attempt."""
        last = self.last_step
        before = last.tokens if last is not None else 0 if event.step == 1 else math.nan
        done = event.tokens - before
        if done >= 0 and event.step_s > 0:
            return done / event.step_s
        self.absent["tokens_per_second"].append(len(self.steps))
        return math.nan


class MachineTrack:
    """Samples of one host's memory and load over Unix seconds."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self.last: MachineSampled | None = None

    def sample(self, event: MachineSampled) -> None:
        """Add a reading; a value that was not reported is absent, never zero."""
        self.last = event
        total, available = event.ram_total_bytes, event.ram_available_bytes
        used = None if total is None or available is None else float(total - available)
        self._add("ram_used_bytes", event.t, used)
        self._add("engine_rss_bytes", event.t, event.engine_rss_bytes)
        self._add("cpu_percent", event.t, event.cpu_percent)
        self._add("engine_cpu_percent", event.t, event.engine_cpu_percent)
        for device in event.devices:
            for name in ("memory_used_bytes", "util_percent", "temperature_c", "power_w"):
                self._add(f"gpu{device.id}_{name}", event.t, getattr(device, name))

    def copy(self) -> MachineTrack:
        """An independent track with the same content."""
        twin = MachineTrack()
        twin.series = {name: series.copy() for name, series in self.series.items()}
        twin.last = self.last
        return twin

    def _add(self, name: str, t: float, value: float | None) -> None:
        if value is None and name not in self.series:
            return
        if name not in self.series:
            self.series[name] = Series()
        self.series[name].append(t, value)


class LastStep(Track):
    """A track that keeps only its newest step, for a process that lives as long as the run."""

    def step(self, event: Step) -> None:
        """Take the step instead of the one before it."""
        self.last_step = event


class LastSample(MachineTrack):
    """The newest reading of a machine, without the older ones."""

    def sample(self, event: MachineSampled) -> None:
        """Take the reading instead of the one before it."""
        self.last = event


class WriterFacts:
    """All facts of one writer, in its order.

    Args:
        name: the writer's id.
        lean: keep no series, samples or log lines: the memory does not grow with the steps.
    """

    def __init__(self, name: str, *, lean: bool = False) -> None:
        self.name = name
        self._new_track: type[Track] = LastStep if lean else Track
        self._new_machine: type[MachineTrack] = LastSample if lean else MachineTrack
        self.numbers = Numbers()
        self.t = 0.0
        self.m = 0.0
        self.worked: Work | None = None
        self.t_max = 0.0
        self.opened: WriterOpened | None = None
        self.lifecycle: list[tuple[float, AnyEvent]] = []
        self.tracks: dict[AttemptKey, Track] = {}
        self.machines: dict[str, MachineTrack] = {}
        self.rank_report: RankReport | None = None
        self.samples: deque[SampledText] = deque(maxlen=0 if lean else SAMPLES)
        self.log: deque[AnyEvent] = deque(maxlen=0 if lean else LOG_LINES)
        self._track_key: AttemptKey = ("", -1)
        self._track = self._new_track()

    @property
    def role(self) -> WriterRole:
        """The process's role; unknown if its first record was lost."""
        return self.opened.role if self.opened else WriterRole.UNKNOWN

    @property
    def launch(self) -> int:
        """The number of its supervisor among those of the run; 0 in journals of older versions."""
        if self.opened is not None and self.opened.launch:
            return self.opened.launch
        return next((n for _, event in self.lifecycle[:3] if (n := getattr(event, "launch", 0))), 0)

    def track(self, stage: str, attempt: int) -> Track:
        """The track of an attempt, created at first use."""
        if self._track_key != (stage, attempt):
            self._track_key = (stage, attempt)
            self._track = self.tracks.setdefault(self._track_key, self._new_track())
        return self._track

    def on_step(self, event: Step) -> None:
        """Add a step."""
        self.worked = event
        if self._track_key == (event.stage, event.attempt):
            self._track.step(event)
        else:
            self.track(event.stage, event.attempt).step(event)

    def on_progress(self, event: Progress) -> None:
        """Add a progress report."""
        self.worked = event
        track = self.track(event.stage, event.attempt)
        if track.progress is not None and (event.done < track.progress.done or event.unit != track.progress.unit):
            track.rate.clear()
        track.progress = event
        track.rate.append((event.m, event.done))

    def on_phase(self, event: Phase) -> None:
        """Start a phase; the progress rate of the previous phase does not apply to it.

        The log leaves out phases between two steps: the checkpoint, the evaluation and the sample have their own lines.
        It leaves out repetitions too: a paused engine says every few seconds that it lives, and a night of that would
        push every other line out.
        """
        self.worked = event
        track = self.track(event.stage, event.attempt)
        again = track.phase is not None and track.phase.name == event.name
        track.phase = event
        track.rate.clear()
        track.progress = None
        if not again and not (len(track.steps) and event.name in PASSING_PHASES):
            self.log.append(event)

    def on_rank(self, event: RankReport) -> None:
        """Take the newest report of a process above rank 0."""
        self.rank_report = event

    def on_machine(self, event: MachineSampled) -> None:
        """Add a reading of a machine."""
        self.machines.setdefault(event.host, self._new_machine()).sample(event)

    def on_sample(self, event: SampledText) -> None:
        """Add a text that the model sampled."""
        self.worked = event
        self.samples.append(event)
        self.log.append(event)

    def on_warned(self, event: Warned) -> None:
        """Add a warning, only to the log, so that many warnings cost little."""
        self.log.append(event)

    def on_lifecycle(self, event: AnyEvent) -> None:
        """Add a lifecycle fact. Its time never decreases within a writer, even if the clock was set back."""
        self.t_max = max(self.t_max, event.t)
        self.lifecycle.append((self.t_max, event))
        self.log.append(event)
        if isinstance(event, WriterOpened):
            self.opened = event
        elif isinstance(event, _LIFECYCLE_WORK) and (self.worked is None or event.seq > self.worked.seq):
            self.worked = event

    def on_late(self, event: AnyEvent) -> None:
        """Insert a lifecycle fact that arrived after younger records, at its place in the writer's order."""
        known = [event for _, event in self.lifecycle]
        self.lifecycle, self.t_max, self.opened = [], 0.0, None
        log = sorted([*self.log, event], key=lambda entry: entry.seq)
        self.log.clear()
        for fact in sorted([*known, event], key=lambda entry: entry.seq):
            self.on_lifecycle(fact)
        self.log.clear()
        self.log.extend(log)

    def copy(self) -> WriterFacts:
        """An independent object with the same facts; events are immutable and shared."""
        twin = WriterFacts(self.name)
        twin.numbers = self.numbers.copy()
        twin.t, twin.t_max, twin.opened = self.t, self.t_max, self.opened
        twin.m, twin.worked = self.m, self.worked
        twin.rank_report = self.rank_report
        twin.lifecycle = self.lifecycle[:]
        twin.tracks = {key: track.copy() for key, track in self.tracks.items()}
        twin.machines = {host: machine.copy() for host, machine in self.machines.items()}
        twin.samples, twin.log = self.samples.copy(), self.log.copy()
        return twin

    def canonical(self) -> list[Any]:
        """A form of the facts that is equal if and only if the facts are equal."""
        tracks = [(key, *track.canonical()) for key, track in sorted(self.tracks.items())]
        machines = [(host, _series_bytes(m.series), repr(m.last)) for host, m in sorted(self.machines.items())]
        texts = [repr(event) for event in (*self.samples, *self.log)]
        return [
            self.name,
            self.numbers,
            self.t,
            self.m,
            repr(self.worked),
            repr(self.lifecycle),
            tracks,
            machines,
            texts,
        ]


def _series_bytes(series: dict[str, Series]) -> list[Any]:
    return [
        (name, in_memory(s.x)[: len(s)].tobytes(), s.y.tobytes(), s.absent.tobytes())
        for name, s in sorted(series.items())
    ]


Handler: TypeAlias = Callable[[WriterFacts, Any], None]
HANDLERS: dict[type, Handler] = {
    Step: WriterFacts.on_step,
    Progress: WriterFacts.on_progress,
    Phase: WriterFacts.on_phase,
    MachineSampled: WriterFacts.on_machine,
    SampledText: WriterFacts.on_sample,
    Warned: WriterFacts.on_warned,
    RankReport: WriterFacts.on_rank,
}
"""The handler of each kind of event; every other kind is a lifecycle fact."""
