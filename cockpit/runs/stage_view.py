"""The present state of the run, its stages and attempts, for screens, lists and reports."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias, TypeVar

from cockpit.runs.writer_facts import Track, WriterFacts
from engines.events.attempts import (
    AttemptEnded,
    AttemptStarted,
    DevicesUsed,
    EngineStalled,
    InputsRecorded,
    Phase,
    Progress,
    RanksPlaced,
    ResumedFrom,
)
from engines.events.results import ArtifactCommitted, Evaluated, GateChecked
from engines.events.runs import AcceptedInput, Adjusted, ControlApplied, FieldChanged, StageSucceeded
from engines.events.steps import CheckpointCommitted, CheckpointRemoved, GuardTripped, Step
from engines.events.writers import Gap
from engines.words import EndReason, RunStatus, StageStatus, WriterRole

RECENT_STEPS = 32
UNFINISHED = 0.99
"""The largest share that is shown of work whose result does not exist: 100% means done."""
_Kept = TypeVar("_Kept")
Order: TypeAlias = int
"""The place of a lifecycle fact among those of the run."""
LAST: Order = 1 << 62


@dataclass
class AttemptView:
    """One engine process within a stage.

    `reason` is the engine's if it recorded one, else the supervisor's; `exit` is the supervisor's if it is known.
    `stalled` is the supervisor's record of a stall that has not ended; `announced_m` is the monotonic time at which
    the supervisor, the writer `announced_by`, started the process.
    """

    stage: str
    attempt: int
    kind: str = ""
    started_t: float | None = None
    ended_t: float | None = None
    announced: bool = False
    resumed_from: ResumedFrom | None = None
    total_steps: int | None = None
    learning_rate_scale: float = 1.0
    adjusted: list[Adjusted] = field(default_factory=list)
    """fields that it has other values of than the recipe, because memory ran out"""
    pid: int = 0
    reason: EndReason = EndReason.NOT_GIVEN
    exit: int | None = None
    detail: str = ""
    stalled: EngineStalled | None = None
    inputs: InputsRecorded | None = None
    devices: DevicesUsed | None = None
    """the accelerators of its engine, once the engine has said which"""
    placed: RanksPlaced | None = None
    """how its processes share the training, once they have said so"""
    engines: list[WriterFacts] = field(default_factory=list)
    """the facts of its engine's writers"""
    cpu_s: float | None = None
    announced_by: str = ""
    announced_m: float | None = None
    guards: list[GuardTripped] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    first: Order = LAST
    started: AttemptStarted | None = None
    _by_engine: AttemptEnded | None = None
    _by_supervisor: AttemptEnded | None = None

    @property
    def placed_words(self) -> str:
        """`2 processes, ddp`, as its processes said; empty for one process. Not safe to print before `safe_text`."""
        return "" if self.placed is None else f"{self.placed.world_size} processes, {self.placed.strategy}"

    @property
    def busy_s(self) -> float | None:
        """Seconds from its engine's first record to the newest one, by the monotonic clock; None without a record."""
        spans = [engine.m - engine.lifecycle[0][1].m for engine in self.engines if engine.lifecycle]
        return max(0.0, *spans) if spans else None

    @property
    def ended(self) -> bool:
        """Whether the engine or the supervisor recorded its end."""
        return bool(self.reason)

    @property
    def present_stall(self) -> EngineStalled | None:
        """The supervisor's record of a stall, if the engine has written nothing since."""
        newest = [event.m for t in self.tracks for event in (t.last_step, t.phase, t.progress) if event is not None]
        return None if self.stalled is None or max(newest, default=0.0) > self.stalled.m else self.stalled

    @property
    def last_step(self) -> Step | None:
        """Its newest step."""
        return max((t.last_step for t in self.tracks if t.last_step), key=lambda s: (s.t, s.w), default=None)

    @property
    def progress(self) -> Progress | None:
        """Its newest progress."""
        return max((t.progress for t in self.tracks if t.progress), key=lambda p: (p.t, p.w), default=None)

    @property
    def phase(self) -> Phase | None:
        """Its newest phase."""
        return max((t.phase for t in self.tracks if t.phase), key=lambda p: (p.t, p.w), default=None)

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of its newest steps."""
        times = [s for t in self.tracks for s in t.columns["step_s"][-RECENT_STEPS:]]
        return median(times) if times else None

    @property
    def progress_rate(self) -> float | None:
        """Units of progress per second, over its newest reports."""
        for track in self.tracks:
            if len(track.rate) >= 2:
                (t0, done0), (t1, done1) = track.rate[0], track.rate[-1]
                if t1 > t0 and done1 > done0:
                    return (done1 - done0) / (t1 - t0)
        return None

    def end(self, event: AttemptEnded, role: WriterRole) -> None:
        """Add the engine's or the supervisor's record of the end; their order does not matter."""
        if role.is_supervisors_record(event.exit):
            self._by_supervisor = event
        else:
            self._by_engine = event
        ours, theirs = self._by_engine, self._by_supervisor
        accounts = [account for account in (ours, theirs) if account is not None]
        knowing = ours if ours is not None and (theirs is None or not ours.reason.is_unspecific) else theirs
        assert knowing is not None
        self.reason = knowing.reason
        self.detail = knowing.detail or next((account.detail for account in accounts if account.detail), "")
        self.exit = next((account.exit for account in reversed(accounts) if account.exit is not None), None)
        self.ended_t = max(account.t for account in accounts)
        # An engine knows what it used itself, the supervisor what all its processes used.
        users = (ours, theirs) if self.placed is None else (theirs, ours)
        self.cpu_s = next((account.cpu_s for account in users if account and account.cpu_s is not None), None)


@dataclass
class StageView:
    """The present state of a stage."""

    name: str
    kind: str = ""
    state: StageStatus = StageStatus.PENDING
    reason: str = ""
    started_t: float | None = None
    ended_t: float | None = None
    planned_steps: int | None = None
    fingerprint: str = ""
    manifest_sha256: str = ""
    metrics: dict[str, float | None] = field(default_factory=dict)
    by_attempt: dict[int, AttemptView] = field(default_factory=dict)
    gates: list[GateChecked] = field(default_factory=list)
    all_evaluations: list[Evaluated] = field(default_factory=list)
    all_artifacts: list[ArtifactCommitted] = field(default_factory=list)
    succeeded_attempt: int | None = None
    standing: StageSucceeded | None = None
    """the success whose output stands in `out`, also while a rerun of the stage is requested or has failed"""
    last_saved: CheckpointCommitted | None = None
    _checkpoints: dict[tuple[int, int, str], CheckpointCommitted] = field(default_factory=dict)
    _removed: set[tuple[int, int, str]] = field(default_factory=set)
    diagnosed: tuple[int, list[Any]] | None = field(default=None, repr=False, compare=False)
    """what `diagnosis` found last, with the number of steps and evaluations that it had"""
    _lists: dict[str, list[Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def attempts(self) -> list[AttemptView]:
        """Attempts by number."""
        return [self.by_attempt[n] for n in sorted(self.by_attempt)]

    @property
    def current(self) -> AttemptView | None:
        """The newest attempt."""
        return self.by_attempt[max(self.by_attempt)] if self.by_attempt else None

    @property
    def checkpoints(self) -> list[CheckpointCommitted]:
        """Checkpoints that were committed and not removed, by attempt and step."""
        return self._once("checkpoints", self._list_checkpoints)

    @property
    def all_checkpoints(self) -> list[CheckpointCommitted]:
        """All committed checkpoints, including removed ones, by attempt and step."""
        return self._once("all", lambda: [c for _key, c in sorted(self._checkpoints.items())])

    @property
    def best_checkpoint(self) -> CheckpointCommitted | None:
        """The best checkpoint now: the newest one of the lineage that was the best when it was committed."""
        cuts = {attempt.attempt: cut for attempt, cut in self.lineage}
        own = (c for c in reversed(self.checkpoints) if c.step <= cuts.get(c.attempt, -1))
        return next((c for c in own if c.best), None)

    @property
    def artifacts(self) -> list[ArtifactCommitted]:
        """The artifacts of the successful attempt; without one, of all attempts."""
        standing = None if self.standing is None else self.standing.attempt
        done = [a for a in self.all_artifacts if a.attempt == standing]
        return done or list(self.all_artifacts)

    @property
    def busy_s(self) -> float | None:
        """Seconds that its engines worked, without the time between attempts; None without an attempt."""
        spans = [attempt.busy_s for attempt in self.attempts if attempt.busy_s is not None]
        return sum(spans) if spans else None

    @property
    def cpu_s(self) -> float | None:
        """CPU seconds of its attempts, as far as they are known, whatever their end."""
        known = {attempt.attempt: attempt.cpu_s for attempt in self.attempts}
        if self.standing is not None and known.get(self.standing.attempt) is None:  # journals of older versions
            known[self.standing.attempt] = self.standing.metrics.get("cpu_s")
        spent = [seconds for seconds in known.values() if seconds is not None]
        return sum(spent) if spent else None

    @property
    def lineage(self) -> list[tuple[AttemptView, float]]:
        """The attempts whose numbers count, oldest first, each with the last step that counts."""
        chain: list[tuple[AttemptView, float]] = []
        attempt, cut = self.current, float("inf")
        if self.state.is_done and self.succeeded_attempt in self.by_attempt:  # figures belong to what stands in `out`
            attempt = self.by_attempt[self.succeeded_attempt]
        while attempt is not None and all(attempt is not seen for seen, _ in chain):
            chain.append((attempt, cut))
            origin = attempt.resumed_from
            if origin is None:
                break
            attempt, cut = self.by_attempt.get(origin.attempt), min(cut, origin.step)
        return chain[::-1]

    @property
    def evaluations(self) -> list[Evaluated]:
        """Evaluations of steps that no later attempt replaced."""
        return self._once("evaluations", self._list_evaluations)

    @property
    def evaluated_metrics(self) -> list[str]:
        """Names of what the evaluations measured besides loss and perplexity."""
        return self._once("evaluated metrics", lambda: sorted({n for e in self.evaluations for n in e.metrics}))

    @property
    def guards(self) -> list[GuardTripped]:
        """Every guard that tripped, by attempt."""
        return [guard for attempt in self.attempts for guard in attempt.guards]

    @property
    def last_step(self) -> Step | None:
        """The newest step of the newest attempt in the lineage that has steps."""
        for attempt, cut in reversed(self.lineage):
            step = attempt.last_step
            if step is not None and step.step <= cut:
                return step
        return None

    @property
    def at_step(self) -> int | None:
        """The step the stage has reached: the newest one, or the one it was resumed from."""
        for attempt, _cut in reversed(self.lineage):
            step = attempt.last_step
            if step is not None:
                return step.step
            if attempt.resumed_from is not None:
                return attempt.resumed_from.step
        return None

    def time_of_step(self, step: float) -> float | None:
        """The Unix time of the newest step of the lineage up to `step`; None before the first."""
        for attempt, cut in reversed(self.lineage):
            for track in attempt.tracks:
                at = bisect_right(track.steps, min(step, cut)) - 1
                if at >= 0:
                    return track.columns["t"][at]
        return None

    @property
    def progress(self) -> Progress | None:
        """Progress of the newest attempt: done, total, unit, t."""
        return self.current.progress if self.current else None

    @property
    def phase(self) -> str:
        """The name of the newest attempt's phase."""
        phase = self.current.phase if self.current else None
        return phase.name if phase else ""

    @property
    def total_steps(self) -> int | None:
        """Planned optimizer steps."""
        for attempt in reversed(self.attempts):
            if attempt.total_steps is not None:
                return attempt.total_steps
        return self.planned_steps

    @property
    def fraction(self) -> float | None:
        """The share of the work that is done, 0 to 1; at most 0.99 of a stage that failed or was stopped.

        The work of a failed stage is not done, also if it failed after its last step or answer.
        """
        if self.state == StageStatus.SUCCEEDED:
            return 1.0
        most = UNFINISHED if self.state.has_ended else 1.0
        if self.total_steps and self.at_step is not None:
            return min(most, self.at_step / self.total_steps)
        progress = self.progress
        if progress and progress.total:
            return max(0.0, min(most, progress.done / progress.total))
        return None

    def _once(self, name: str, make: Callable[[], list[_Kept]]) -> list[_Kept]:
        """A list that is made again only after a new fact of the stage: screens ask five times a second."""
        if name not in self._lists:
            self._lists[name] = make()
        return self._lists[name]

    def forget_lists(self) -> None:
        """Make the lists again, after a new fact of the stage or of its attempts."""
        self._lists.clear()

    def _list_checkpoints(self) -> list[CheckpointCommitted]:
        return [c for key, c in sorted(self._checkpoints.items()) if key not in self._removed]

    def _list_evaluations(self) -> list[Evaluated]:
        cuts = {attempt.attempt: cut for attempt, cut in self.lineage}
        return [e for e in self.all_evaluations if e.attempt in cuts and (e.step or 0) <= cuts[e.attempt]]

    def keep(
        self, event: Evaluated | CheckpointCommitted | CheckpointRemoved | ArtifactCommitted | GateChecked
    ) -> None:
        """Add a measurement or a product; a checkpoint's removal may arrive before its commit."""
        self.forget_lists()
        match event:
            case Evaluated():
                self.all_evaluations.append(event)
            case CheckpointCommitted():
                if event.evaluated:  # by the one writer that committed it before
                    for key in [key for key in self._checkpoints if key[:2] == (event.attempt, event.step)]:
                        del self._checkpoints[key]
                self._checkpoints[event.attempt, event.step, event.sha256] = event
                self.last_saved = event
            case CheckpointRemoved():
                self._removed.add((event.attempt, event.step, event.sha256))
            case ArtifactCommitted():
                self.all_artifacts.append(event)
            case GateChecked():
                self.gates.append(event)


@dataclass
class RunView:
    """The present state of the run, from its lifecycle facts."""

    id: str = ""
    recipe: str = ""
    parent: str | None = None
    state: RunStatus = RunStatus.QUEUED
    reason: str = ""
    started_t: float | None = None
    ended_t: float | None = None
    operator_start: Order | None = None
    only: list[str] = field(default_factory=list)
    """the stages that the operator's newest start runs; empty for all"""
    paused: bool = False
    order: list[str] = field(default_factory=list)
    stages: dict[str, StageView] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    controls: list[ControlApplied] = field(default_factory=list)
    pauses: dict[str, tuple[Order, ControlApplied]] = field(default_factory=dict)
    """the newest pause or continue that each writer carried out, and its place"""
    changes: dict[int, FieldChanged] = field(default_factory=dict)
    accepted_inputs: list[AcceptedInput] = field(default_factory=list)

    def stage(self, name: str) -> StageView:
        """The stage of that name, created at its first mention."""
        if name not in self.stages:
            self.stages[name] = StageView(name)
            self.order.append(name)
        return self.stages[name]

    def attempt(self, stage: str, number: int, order: Order) -> AttemptView:
        """The attempt, created at its first mention."""
        attempts = self.stage(stage).by_attempt
        if number not in attempts:
            attempts[number] = AttemptView(stage, number, first=order)
        return attempts[number]

    @property
    def listed(self) -> list[StageView]:
        """Stages in run order."""
        return [self.stages[name] for name in self.order]
