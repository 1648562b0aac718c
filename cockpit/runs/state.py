"""The state of a run: a pure fold over its journal, the same live, in replay, headless and in reports.

`RunState.apply` keeps each writer's facts in that writer's order; views combine writers by rules that do not depend on
the order between them. Nothing here reads the clock, the file system or processes: callers check whether a "running"
run still has a process ("lost" if not).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cockpit.runs.combine import Combination, busy_s
from cockpit.runs.log_lines import LogLine, line_of
from cockpit.runs.series import Series, joined
from cockpit.runs.stage_view import UNFINISHED, AttemptView, RunView, StageView
from cockpit.runs.writer_facts import HANDLERS, WriterFacts
from engines.events.kinds import AnyEvent
from engines.events.machine import Device, MachineSampled
from engines.events.results import Evaluated, SampledText
from engines.events.runs import AcceptedInput, ControlApplied, FieldChanged
from engines.events.writers import Gap
from engines.machine.device_identity import is_same
from engines.words import RunStatus, StageStatus, WriterRole

__all__ = ["EVAL", "AttemptView", "LogLine", "RunState", "StageView", "fold"]

EVAL = "eval_"
"""Before the name of a metric: as evaluations measured it, not steps."""


@dataclass(frozen=True)
class OwnDevices:
    """The accelerators that a stage's engine uses, as the driver measured them.

    `known` is false where no engine has said which: then they are all `of` the machine.
    """

    devices: list[Device]
    known: bool
    of: int

    @property
    def doubt(self) -> str:
        """What stands beside the figures of a card that may be another run's; "" without a doubt."""
        return "" if self.known or self.of < 2 else "own gpu unknown"


@dataclass
class _Joined:
    """A series that was joined from several parts, and the identity of the parts."""

    recipe: tuple[tuple[int, int], ...]
    last: Series | None
    taken: int
    whole: Series


class RunState:
    """The fold. Events may be applied in any interleaving of writers; duplicates (same writer and number) are ignored.

    Args:
        lean: keep the newest step, reading and progress, but no series and no log: for a process that lives as long as
            the run and only needs its summary. Such a state is not copied.

    Attributes:
        unreadable: lines that could not be read, counted by the journal's reader.
        unknown: records of kinds that this version does not support, counted by the journal's reader.
        version: number of new events; equal versions mean equal views.
    """

    def __init__(self, *, lean: bool = False) -> None:
        self._lean = lean
        self.unreadable = 0
        self.unknown = 0
        self.version = 0
        self._lifecycle_version = 0
        self._writers: dict[str, WriterFacts] = {}
        self._combination = Combination()
        self._changed: dict[str, WriterFacts] = {}
        self._viewed = 0
        self._joined: dict[tuple[str, ...], _Joined] = {}
        self._left_out: dict[tuple[str, str, int], tuple[object, Series]] = {}
        self._log_cache: tuple[object, list[LogLine]] | None = None
        self._evaluated: dict[tuple[str, str], tuple[list[Evaluated], Series]] = {}

    # ---- folding

    @classmethod
    def restored(cls, writers: Iterable[WriterFacts], events: int) -> RunState:
        """The state of these writers after `events` events, as another reader stored it."""
        state = cls()
        state._writers = {writer.name: writer for writer in writers}
        state._changed = dict(state._writers)
        state.version = events
        state._lifecycle_version = sum(len(writer.lifecycle) for writer in state._writers.values())
        return state

    def apply(self, event: AnyEvent) -> bool:
        """Apply one event; returns whether it was new."""
        writer = self._writers.get(event.w)
        if writer is None:
            writer = self._writers[event.w] = WriterFacts(event.w, lean=self._lean)
        seq, numbers = event.seq, writer.numbers
        handler = HANDLERS.get(type(event))
        if seq < numbers.next:
            # Writers keep lifecycle facts until the disk has space again, so only these can be late.
            if handler is not None or not numbers.is_late(seq):
                return False
            numbers.fill(seq)
            writer.on_late(event)
            self._combine_again()
            self._lifecycle_version += 1
            self.version += 1
            return True
        if seq == numbers.next:  # nearly always: saves a call
            numbers.next = seq + 1
        else:
            numbers.pass_to(seq)
        writer.t, writer.m = event.t, event.m
        if handler is None:
            writer.on_lifecycle(event)
            self._lifecycle_version += 1
            self._changed[event.w] = writer
        else:
            tracks = len(writer.tracks)
            handler(writer, event)
            if len(writer.tracks) != tracks:
                self._changed[event.w] = writer
        self.version += 1
        return True

    def apply_all(self, events: Iterable[AnyEvent]) -> int:
        """Apply many events; returns how many were new."""
        before, apply = self.version, self.apply
        for event in events:
            apply(event)
        return self.version - before

    def copy(self) -> RunState:
        """An independent state with the same facts, for a keyframe."""
        twin = RunState()
        twin.unreadable, twin.unknown, twin.version = self.unreadable, self.unknown, self.version
        twin._lifecycle_version = self._lifecycle_version
        twin._writers = {name: writer.copy() for name, writer in self._writers.items()}
        twin._changed = dict(twin._writers)
        return twin

    # ---- the run

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.view.id

    @property
    def recipe(self) -> str:
        """The name of the run's recipe."""
        return self.view.recipe

    @property
    def state(self) -> RunStatus:
        """The state in the journal; never `lost`."""
        return self.view.state

    @property
    def reason(self) -> str:
        """Why the run ended."""
        return self.view.reason

    @property
    def stages(self) -> list[StageView]:
        """Stages in run order."""
        return self.view.listed

    def stage(self, name: str) -> StageView | None:
        """The stage of that name."""
        return self.view.stages.get(name)

    @property
    def current_stage(self) -> StageView | None:
        """The running stage; else the newest that has attempts; else the first."""
        stages = self.stages
        for stage in reversed(stages):
            if stage.state == StageStatus.RUNNING:
                return stage
        begun = [s for s in stages if s.current is not None]
        if begun:
            return max(begun, key=lambda s: s.current.first if s.current else -1)
        return stages[0] if stages else None

    @property
    def started_t(self) -> float | None:
        """When the run was launched, Unix seconds."""
        return self.view.started_t

    @property
    def ended_t(self) -> float | None:
        """When the run ended, Unix seconds."""
        return self.view.ended_t

    @property
    def busy_s(self) -> float | None:
        """Seconds in which a process of the run worked, without the time between its end and a resume."""
        return busy_s(self._writers.values())

    @property
    def last_event_t(self) -> float | None:
        """The time of the newest record of any writer, Unix seconds."""
        return max((w.t for w in self._writers.values()), default=None)

    @property
    def progress(self) -> float | None:
        """The share of the run that is done; all stages that the operator selected have the same weight.

        At most 0.99 until each of them is done: their results are what a run is for.
        """
        only = set(self.view.only)
        stages = [stage for stage in self.stages if not only or stage.name in only]
        if not stages:
            return None
        if all(stage.state.is_done for stage in stages):
            return 1.0
        return min(UNFINISHED, sum(1.0 if s.state.is_done else s.fraction or 0.0 for s in stages) / len(stages))

    def attempts_since_resume(self, stage: str) -> int:
        """Attempts of the stage since the launch or the operator's last resume; `max_attempts` limits them."""
        view = self.view.stages.get(stage)
        since = self.view.operator_start
        if view is None:
            return 0
        return sum(1 for a in view.attempts if a.announced and (since is None or a.first >= since))

    @property
    def view(self) -> RunView:
        """The combined lifecycle facts; new facts are added to it when it is asked for."""
        if self._changed:
            changed, self._changed = list(self._changed.values()), {}
            self._combination.update(changed, self._writers)
        elif self._viewed != self.version:
            self._combination.settle_again()
        self._viewed = self.version
        return self._combination.view

    def _combine_again(self) -> None:
        """Combine all facts, because one was inserted before known ones."""
        applied, self._combination = self._combination.applied, Combination()
        self._combination.applied, self._changed = applied, dict(self._writers)

    @property
    def combined(self) -> int:
        """How many facts were combined since the start: the cost of all views."""
        return self._combination.applied

    # ---- numbers

    def series(self, stage: str, name: str) -> Series:
        """A metric of the stage over steps, across attempts, without steps that a later attempt replaced.

        A name with `EVAL` before it is the same metric as evaluations measured it.
        """
        view = self.view.stages.get(stage)
        if view is None:
            return Series()
        if name.startswith(EVAL):
            return self._evaluations(view, name.removeprefix(EVAL))
        parts = [(s, cut) for attempt, cut in view.lineage for t in attempt.tracks if (s := t.series(name)) is not None]
        if not parts:
            return Series()
        if len(parts) == 1 and parts[0][1] == float("inf"):
            return parts[0][0]
        return self._join((stage, name), parts)

    def superseded(self, stage: str, name: str) -> list[Series]:
        """The points that `series` leaves out, one series per attempt with such points."""
        view = self.view.stages.get(stage)
        if view is None:
            return []
        cuts = {attempt.attempt: cut for attempt, cut in view.lineage}
        left_out = []
        for attempt in view.attempts:
            cut = cuts.get(attempt.attempt, float("-inf"))
            parts = [s for t in attempt.tracks if (s := t.series(name)) is not None and len(s) and s.x[-1] > cut]
            if parts:
                left_out.append(self._leave_out((stage, name, attempt.attempt), parts, cut))
        return left_out

    def _leave_out(self, key: tuple[str, str, int], parts: list[Series], cut: float) -> Series:
        """The points of an attempt after the cut, cached: an attempt whose steps were replaced has ended."""
        recipe = (cut, *((id(part), len(part)) for part in parts))
        known = self._left_out.get(key)
        if known is None or known[0] != recipe:
            known = self._left_out[key] = (recipe, _part(joined(parts), after=cut))
        return known[1]

    def series_names(self, stage: str) -> list[str]:
        """Names of the stage's metrics, standard metrics first; at the end, those that only evaluations measured."""
        view = self.view.stages.get(stage)
        if view is None:
            return []
        names = dict.fromkeys(n for a, _ in view.lineage for t in a.tracks for n in t.names())
        measured = view.evaluated_metrics if names else []
        return [*names, *(EVAL + name for name in measured if name not in names)]

    def machine_series(self, name: str, host: str | None = None) -> Series:
        """A reading over Unix seconds, of one host (by default the supervisor's)."""
        host = host or self.host
        parts = [m.series[name] for w in self._sorted() if (m := w.machines.get(host)) is not None and name in m.series]
        if len(parts) == 1:
            return parts[0]
        parts.sort(key=lambda p: p.x[-1])
        return self._join((host, name, "machine"), [(p, float("inf")) for p in parts]) if parts else Series()

    def machine_names(self, host: str | None = None) -> list[str]:
        """Names of a host's readings."""
        host = host or self.host
        names = (n for w in self._sorted() if (m := w.machines.get(host)) is not None for n in m.series)
        return list(dict.fromkeys(names))

    def machine(self, host: str | None = None) -> MachineSampled | None:
        """The newest reading of a host."""
        host = host or self.host
        found = [m.last for w in self._writers.values() if (m := w.machines.get(host)) is not None and m.last]
        return max(found, key=lambda s: (self._writers[s.w].launch, s.t, s.w, s.seq), default=None)

    def own_devices(self, stage: str | None = None) -> OwnDevices:
        """The accelerators of the newest reading that a stage's engine uses (by default the current stage's).

        Where no engine of the stage has said which, they are all those of the machine.
        """
        sample = self.machine()
        there = sample.devices if sample is not None else []
        view = self.current_stage if stage is None else self.view.stages.get(stage)
        said = [a.devices for a in view.attempts if a.devices is not None] if view is not None else []
        if not said or not any(device.uuid or device.pci for device in there):
            return OwnDevices(there, known=False, of=len(there))
        used = said[-1].devices
        return OwnDevices([d for d in there if any(is_same(d, one) for one in used)], known=True, of=len(there))

    @property
    def hosts(self) -> list[str]:
        """Names of the machines that were sampled."""
        return sorted({host for w in self._writers.values() for host in w.machines})

    @property
    def host(self) -> str:
        """The default machine: the supervisor's, else the first by name."""
        hosts = self.hosts
        own = [
            w.opened.host
            for w in self._sorted()
            if w.opened and w.role == WriterRole.SUPERVISOR and w.opened.host in hosts
        ]
        return own[0] if own else (hosts[0] if hosts else "")

    # ---- text and problems

    def log(self, limit: int | None = None) -> list[LogLine]:
        """The newest log lines, oldest first. Their text is not safe to print before `safe_text`."""
        newest = [(len(w.log), w.log[-1].seq) for w in self._writers.values() if w.log]
        key = (self._lifecycle_version, limit, newest)
        if self._log_cache is None or self._log_cache[0] != key:
            boots = self._boots()
            entries = [(_place(w, event, boots), event) for w in self._writers.values() for event in w.log]
            entries.sort(key=lambda entry: entry[0])
            lines = [line_of(entry[1]) for entry in (entries if limit is None else entries[-limit:])]
            self._log_cache = (key, lines)
        return self._log_cache[1]

    def newest_events(self) -> list[AnyEvent]:
        """The events of the log, oldest first: the newest ones of each writer."""
        boots = self._boots()
        events = [(_place(writer, event, boots), event) for writer in self._writers.values() for event in writer.log]
        return [event for _, event in sorted(events, key=lambda item: item[0])]

    @property
    def samples(self) -> list[SampledText]:
        """Texts that the model sampled, oldest first."""
        boots = self._boots()
        found = [(_place(w, sample, boots), sample) for w in self._writers.values() for sample in w.samples]
        return [sample for _, sample in sorted(found, key=lambda item: item[0])]

    @property
    def controls(self) -> list[ControlApplied]:
        """Requests that an engine or the supervisor answered, oldest first."""
        return self.view.controls

    @property
    def changes(self) -> list[FieldChanged]:
        """Fields of the recipe that resumes changed, oldest first."""
        return [change for _, change in sorted(self.view.changes.items())]

    @property
    def accepted_inputs(self) -> list[AcceptedInput]:
        """Inputs that had changed and that the operator accepted at a resume, oldest first."""
        return self.view.accepted_inputs

    @property
    def gaps(self) -> list[Gap]:
        """Gaps: records that writers could not write, as they reported."""
        return self.view.gaps

    @property
    def missing(self) -> int:
        """The number of records whose sequence numbers have not been seen."""
        return sum(w.numbers.missing for w in self._writers.values())

    @property
    def writers(self) -> list[WriterFacts]:
        """The facts of every writer, by name."""
        return self._sorted()

    # ---- identity

    def digest(self) -> str:
        """SHA-256 of all folded facts; equal for every interleaving of the same writers."""
        total = hashlib.sha256()
        for writer in self._sorted():
            total.update(repr(writer.canonical()).encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunState) and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]

    def _boots(self) -> dict[str, int]:
        """The number of the first supervisor in each boot of a machine, by boot id."""
        boots: dict[str, int] = {}
        for writer in self._writers.values():
            if writer.opened is not None and writer.launch:
                boot = writer.opened.boot_id
                boots[boot] = min(writer.launch, boots.get(boot, writer.launch))
        return boots

    def _sorted(self) -> list[WriterFacts]:
        return [self._writers[name] for name in sorted(self._writers)]

    def _evaluations(self, view: StageView, metric: str) -> Series:
        known = self._evaluated.get((view.name, metric))
        if known is None or known[0] is not view.evaluations:
            series = Series()
            for evaluation in sorted(view.evaluations, key=lambda e: e.step or 0):
                if evaluation.step is not None and (metric == "loss" or metric in evaluation.metrics):
                    value = evaluation.loss if metric == "loss" else evaluation.metrics[metric]
                    series.append(evaluation.step, value)
            known = self._evaluated[view.name, metric] = (view.evaluations, series)
        return known[1]

    def _join(self, key: tuple[str, ...], parts: list[tuple[Series, float]]) -> Series:
        """The parts as one series, cached: only the last part grows."""
        *fixed, (last, last_cut) = parts
        recipe = (*((id(s), len(s)) for s, _ in fixed), (id(last), int(last_cut) if last_cut != float("inf") else -1))
        known = self._joined.get(key)
        if known is None or known.recipe != recipe or known.taken > len(last):
            whole = joined(_part(s, upto=cut) for s, cut in fixed)
            known = self._joined[key] = _Joined(recipe, last, 0, whole)
        for index in range(known.taken, len(last)):
            if last.x[index] <= last_cut:
                known.whole.append(last.x[index], None if last.is_absent(index) else last.y[index])
        known.taken = len(last)
        return known.whole


def _place(writer: WriterFacts, event: AnyEvent, boots: dict[str, int]) -> tuple[int, float, str, int]:
    """Where an event stands among those of other writers, for people: by boot, then by the monotonic clock, which no
    one sets. Records of older versions, without a supervisor's number, come first, by their wall clock."""
    boot = boots.get(writer.opened.boot_id) if writer.opened is not None and writer.launch else None
    return (0, event.t, event.w, event.seq) if boot is None else (boot, event.m, event.w, event.seq)


def _part(series: Series, *, upto: float = float("inf"), after: float = float("-inf")) -> Series:
    part = Series()
    for index, (x, y) in enumerate(zip(series.x, series.y, strict=False)):
        if after < x <= upto:
            part.append(x, None if series.is_absent(index) else y)
    return part


def fold(events: Iterable[AnyEvent]) -> RunState:
    """The state after these events."""
    state = RunState()
    state.apply_all(events)
    return state
