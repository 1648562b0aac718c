"""The state of a run: a pure fold over its journal, the same live, in replay, headless and in reports.

`RunState.apply` keeps what each writer said in that writer's order; views combine writers by rules that do not depend
on the order between them. Nothing here asks the clock, the file system or a process: whether a run that says
"running" still has a process ("lost" if not) is for callers who can look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cockpit.runs.combine import combine
from cockpit.runs.log_lines import LogLine, line_of
from cockpit.runs.series import Series, joined
from cockpit.runs.stage_view import AttemptView, RunView, StageView
from cockpit.runs.writer_facts import HANDLERS, WriterFacts
from engines.events import AnyEvent, ControlApplied, Gap, MachineSampled, SampledText
from engines.words import PHASE_PAUSED, RunStatus, StageStatus, WriterRole

__all__ = ["AttemptView", "LogLine", "RunState", "StageView", "fold"]


@dataclass
class _Joined:
    """A series put together from several parts, and what it was made of."""

    recipe: tuple[tuple[int, int], ...]
    last: Series | None
    taken: int
    whole: Series


class RunState:
    """The fold. Apply events in any interleaving of writers; duplicates (same writer and number) change nothing.

    Attributes:
        unreadable: lines that were no records, counted by whoever reads the journal.
        unknown: records of kinds this version does not know, counted likewise.
        version: grows with every event that was new; equal versions mean equal views.
    """

    def __init__(self) -> None:
        self.unreadable = 0
        self.unknown = 0
        self.version = 0
        self._lifecycle_version = 0
        self._writers: dict[str, WriterFacts] = {}
        self._view: tuple[tuple[int, int], RunView] | None = None
        self._viewed = -1
        self._joined: dict[tuple[str, ...], _Joined] = {}
        self._left_out: dict[tuple[str, str, int], tuple[object, Series]] = {}
        self._log_cache: tuple[int, int, list[LogLine]] | None = None

    # ---- folding

    def apply(self, event: AnyEvent) -> bool:
        """Take one event; returns whether it was new."""
        writer = self._writers.get(event.w)
        if writer is None:
            writer = self._writers[event.w] = WriterFacts(event.w)
        seq, numbers = event.seq, writer.numbers
        handler = HANDLERS.get(type(event))
        if seq < numbers.next:
            # Writers keep lifecycle facts until the disk has space again, so only these can come late.
            if handler is not None or not numbers.is_late(seq):
                return False
            numbers.fill(seq)
            writer.on_late(event)
            self._lifecycle_version += 1
            self.version += 1
            return True
        if seq == numbers.next:  # nearly always: no call for it
            numbers.next = seq + 1
        else:
            numbers.pass_to(seq)
        writer.t = event.t
        if handler is None:
            writer.on_lifecycle(event)
            self._lifecycle_version += 1
        else:
            handler(writer, event)
        self.version += 1
        return True

    def apply_all(self, events: Iterable[AnyEvent]) -> int:
        """Take many events; returns how many were new."""
        before, apply = self.version, self.apply
        for event in events:
            apply(event)
        return self.version - before

    def copy(self) -> RunState:
        """An independent state with the same facts: a keyframe."""
        twin = RunState()
        twin.unreadable, twin.unknown, twin.version = self.unreadable, self.unknown, self.version
        twin._lifecycle_version = self._lifecycle_version
        twin._writers = {name: writer.copy() for name, writer in self._writers.items()}
        return twin

    # ---- the run

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.view.id

    @property
    def recipe(self) -> str:
        """Name of its recipe."""
        return self.view.recipe

    @property
    def state(self) -> RunStatus:
        """What the journal says; it never says `lost`."""
        return self.view.state

    @property
    def reason(self) -> str:
        """Why it ended as it did."""
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
            return max(begun, key=lambda s: s.current.first if s.current else (0.0, "", 0))
        return stages[0] if stages else None

    @property
    def started_t(self) -> float | None:
        """When it was first taken up, Unix seconds."""
        return self.view.started_t

    @property
    def ended_t(self) -> float | None:
        """When it ended, Unix seconds."""
        return self.view.ended_t

    @property
    def last_event_t(self) -> float | None:
        """When anybody said anything last, Unix seconds."""
        return max((w.t for w in self._writers.values()), default=None)

    @property
    def progress(self) -> float | None:
        """Share of the run that is done, every stage counting alike."""
        stages = self.stages
        if not stages:
            return None
        return sum(1.0 if s.state.is_done else s.fraction or 0.0 for s in stages) / len(stages)

    def attempts_since_resume(self, stage: str) -> int:
        """Attempts of the stage since it was launched or an operator last resumed it: what `max_attempts` counts."""
        view = self.view.stages.get(stage)
        since = self.view.taken_up
        if view is None:
            return 0
        return sum(1 for a in view.attempts if a.announced and (since is None or a.first >= since))

    @property
    def view(self) -> RunView:
        """All lifecycle facts combined; made again only when one is new."""
        key = (self._lifecycle_version, sum(len(w.tracks) for w in self._writers.values()))
        if self._view is None or self._view[0] != key or (self._viewed != self.version and self._pause_may_differ()):
            self._view = (key, combine(self._writers.values()))
        self._viewed = self.version
        return self._view[1]

    def _pause_may_differ(self) -> bool:
        """Steps and phases can end a pause or begin one without a lifecycle fact."""
        assert self._view is not None
        view = self._view[1]
        if view.state == RunStatus.PAUSED:
            return True
        return any((p := s.current.phase if s.current else None) and p.name == PHASE_PAUSED for s in view.listed)

    # ---- numbers

    def series(self, stage: str, name: str) -> Series:
        """A metric of the stage over steps: across attempts, without the steps that a resume superseded."""
        view = self.view.stages.get(stage)
        if view is None:
            return Series()
        if name == "eval_loss":
            return self._evaluations(view)
        parts = [(s, cut) for attempt, cut in view.lineage for t in attempt.tracks if (s := t.series(name)) is not None]
        if not parts:
            return Series()
        if len(parts) == 1 and parts[0][1] == float("inf"):
            return parts[0][0]
        return self._join((stage, name), parts)

    def superseded(self, stage: str, name: str) -> list[Series]:
        """The points that `series` leaves out, one series per attempt that has some."""
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
        """What of an attempt comes after the cut, remembered: a superseded attempt has ended."""
        recipe = (cut, *((id(part), len(part)) for part in parts))
        known = self._left_out.get(key)
        if known is None or known[0] != recipe:
            known = self._left_out[key] = (recipe, _part(joined(parts), after=cut))
        return known[1]

    def series_names(self, stage: str) -> list[str]:
        """Names of the stage's metrics, the standard ones first."""
        view = self.view.stages.get(stage)
        names = [n for a, _ in (view.lineage if view else []) for t in a.tracks for n in t.names()]
        return list(dict.fromkeys(names))

    def machine_series(self, name: str, host: str | None = None) -> Series:
        """A reading over Unix seconds, of one host (the supervisor's, unless named)."""
        host = host or self.host
        parts = [m.series[name] for w in self._sorted() if (m := w.machines.get(host)) is not None and name in m.series]
        if len(parts) == 1:
            return parts[0]
        parts.sort(key=lambda p: p.x[-1])
        return self._join((host, name, "machine"), [(p, float("inf")) for p in parts]) if parts else Series()

    def machine_names(self, host: str | None = None) -> list[str]:
        """Names of the readings there are."""
        host = host or self.host
        names = (n for w in self._sorted() if (m := w.machines.get(host)) is not None for n in m.series)
        return list(dict.fromkeys(names))

    def machine(self, host: str | None = None) -> MachineSampled | None:
        """The newest reading of a host."""
        host = host or self.host
        found = [m.last for w in self._writers.values() if (m := w.machines.get(host)) is not None and m.last]
        return max(found, key=lambda s: (s.t, s.w, s.seq), default=None)

    @property
    def hosts(self) -> list[str]:
        """Machines that were read."""
        return sorted({host for w in self._writers.values() for host in w.machines})

    @property
    def host(self) -> str:
        """The machine shown unless another is asked for: the supervisor's, else the first by name."""
        hosts = self.hosts
        own = [
            w.opened.host
            for w in self._sorted()
            if w.opened and w.role == WriterRole.SUPERVISOR and w.opened.host in hosts
        ]
        return own[0] if own else (hosts[0] if hosts else "")

    # ---- text and troubles

    def log(self, limit: int | None = None) -> list[LogLine]:
        """The newest lines of what happened, oldest first. Their text is hostile until drawn through `safe_text`."""
        if self._log_cache is None or self._log_cache[:2] != (self.version, limit or 0):
            entries = [(event.t, event.w, event.seq, event) for w in self._writers.values() for event in w.log]
            entries.sort(key=lambda entry: entry[:3])
            lines = [line_of(entry[3]) for entry in (entries if limit is None else entries[-limit:])]
            self._log_cache = (self.version, limit or 0, lines)
        return self._log_cache[2]

    @property
    def samples(self) -> list[SampledText]:
        """Texts of the model, oldest first."""
        found = [sample for w in self._writers.values() for sample in w.samples]
        return sorted(found, key=lambda s: (s.t, s.w, s.seq))

    @property
    def controls(self) -> list[ControlApplied]:
        """Requests that were taken, oldest first."""
        return self.view.controls

    @property
    def gaps(self) -> list[Gap]:
        """Records that writers said they could not write."""
        return self.view.gaps

    @property
    def missing(self) -> int:
        """Records whose numbers were never seen."""
        return sum(w.numbers.missing for w in self._writers.values())

    @property
    def writers(self) -> list[WriterFacts]:
        """Every writer, by name: which processes there were."""
        return self._sorted()

    # ---- identity

    def digest(self) -> str:
        """SHA-256 of everything that was folded; equal for every interleaving of the same writers."""
        total = hashlib.sha256()
        for writer in self._sorted():
            total.update(repr(writer.canonical()).encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunState) and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]

    def _sorted(self) -> list[WriterFacts]:
        return [self._writers[name] for name in sorted(self._writers)]

    def _evaluations(self, view: StageView) -> Series:
        series = Series()
        for evaluation in sorted(view.evaluations, key=lambda e: e.step or 0):
            if evaluation.step is not None:
                series.append(evaluation.step, evaluation.loss)
        return series

    def _join(self, key: tuple[str, ...], parts: list[tuple[Series, float]]) -> Series:
        """The parts as one series, remembered: only its last part grows."""
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
