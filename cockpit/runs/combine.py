"""Combine the facts of several writers into the view of one run.

The lifecycle facts of all writers are ordered by the numbers in them, independent of the order of arrival and of wall
clocks, and then applied one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from cockpit.runs.stage_view import LAST, AttemptView, Order, RunView, StageView
from cockpit.runs.writer_facts import AttemptKey, WriterFacts
from engines.events.attempts import (
    AttemptEnded,
    AttemptStarted,
    DevicesUsed,
    EngineRecovered,
    EngineStalled,
    InputsRecorded,
    RanksPlaced,
)
from engines.events.kinds import AnyEvent
from engines.events.results import ArtifactCommitted, Evaluated, GateChecked
from engines.events.runs import (
    ControlApplied,
    RunEnded,
    RunStarted,
    StageFailed,
    StageSkipped,
    StageStarted,
    StageSucceeded,
)
from engines.events.steps import CheckpointCommitted, CheckpointRemoved, GuardTripped, StepsPlanned
from engines.events.writers import Gap, WriterOpened
from engines.words import IGNORED, PHASE_PAUSED, EndReason, RunStatus, StageStatus, Verb, WriterRole

_Fresh: TypeAlias = list[tuple[WriterFacts, list[AnyEvent]]]
"""Writers with their new facts."""
_Engines: TypeAlias = dict[AttemptKey | None, _Fresh]
"""The same of engines, by their attempt."""
_Place: TypeAlias = tuple[int, str]
_FIRST: _Place = (0, "")


class Combination:
    """The view of a run, which grows with its facts.

    Supervisors follow one another by their numbers; an attempt's engine follows the record that starts it. No clock has
    a part in it. Writers of older versions, which have no numbers, come first, by their clocks. A new fact whose place
    is after all others is applied to the view; otherwise the view is made again from all facts.

    Attributes:
        view: the same object until it is made again.
        applied: how many facts were applied so far: the cost.
    """

    def __init__(self) -> None:
        self.applied = 0
        self._reset()

    def _reset(self) -> None:
        self.view = RunView()
        self._order: Order = 0
        self._taken: dict[str, int] = {}
        self._kinds: dict[str, tuple[object, ...]] = {}
        self._last_by_clock: tuple[float, str, int] | None = None
        self._numbered = False
        self._newest: _Place = _FIRST
        self._ended_launch = 0
        self._open: AttemptKey | None = None
        self._placed: dict[AttemptKey | None, _Place] = {}
        self._left = False
        self._unannounced = False
        self._of_attempt: dict[AttemptKey, list[WriterFacts]] = {}
        self._running: dict[str, StageView] = {}
        self._settled: list[StageView] = []
        self._recorded = self.view.state

    def update(self, changed: Iterable[WriterFacts], writers: Mapping[str, WriterFacts]) -> RunView:
        """Apply what is new.

        Args:
            changed: writers with new facts or tracks. A fact that was inserted before known ones needs a new object.
            writers: all writers, by name.
        """
        changed = sorted(changed, key=lambda w: w.name)
        self._unsettle()
        facts = None if self._unannounced else self._appended(changed)
        if facts is None:
            self._reset()
            changed = sorted(writers.values(), key=lambda w: w.name)
            facts = self._appended(changed) or []
        for event in facts:
            self._apply(event, writers[event.w].role)
        for writer in changed:
            self._attach(writer)
        self._settle()
        return self.view

    def settle_again(self) -> None:
        """Look again whether the run is paused: steps and phases can change it without a lifecycle fact."""
        phases = [stage.current.phase for stage in self._running.values() if stage.current is not None]
        if self.view.paused or any(phase is not None and phase.name == PHASE_PAUSED for phase in phases):
            self._unsettle()
            self._settle()

    # ---- the order

    def _appended(self, changed: Sequence[WriterFacts]) -> list[AnyEvent] | None:
        """The new facts in the order in which they are applied; None if one belongs before one that was applied."""
        by_clock: list[tuple[tuple[float, str, int], AnyEvent]] = []
        by_number: _Fresh = []
        for writer in changed:
            before, kind = self._taken.get(writer.name, 0), _kind_of(writer)
            if before and self._kinds[writer.name] != kind:
                return None
            self._taken[writer.name], self._kinds[writer.name] = len(writer.lifecycle), kind
            fresh = [
                (n, t, event)
                for n, (t, event) in enumerate(writer.lifecycle[before:], before)
                if not isinstance(event, WriterOpened)
            ]
            if writer.launch and fresh:
                by_number.append((writer, [event for _, _, event in fresh]))
            elif fresh:
                by_clock += [((t, writer.name, n), event) for n, t, event in fresh]
        by_clock.sort(key=lambda item: item[0])
        if by_clock and (self._numbered or (self._last_by_clock is not None and by_clock[0][0] < self._last_by_clock)):
            return None
        self._last_by_clock = by_clock[-1][0] if by_clock else self._last_by_clock
        self._numbered = self._numbered or bool(by_number)
        numbered = self._by_number(by_number)
        return None if numbered is None else [*(event for _, event in by_clock), *numbered]

    def _by_number(self, fresh: _Fresh) -> list[AnyEvent] | None:
        if not fresh:
            return []
        engines: _Engines = {}
        supervisors = []
        # Attempts whose records of their start were lost follow one another by their own numbers.
        for writer, facts in sorted(fresh, key=lambda item: (item[0].launch, _number_of(item[0]), item[0].name)):
            if _supervises(writer):
                supervisors.append((writer, facts))
            else:
                engines.setdefault(_attempt_of(writer), []).append((writer, facts))
        if self._left:
            return None
        if self._are_late([writer for writer, _ in supervisors], engines):
            return None
        found = [event for key in list(engines) if key in self._placed for event in self._place(key, engines)]
        for writer, facts in supervisors:
            self._newest = _place_of(writer)
            for event in facts:
                found += self._with_engines(event, writer.launch, engines)
        self._left = bool(engines)
        for key in list(engines):
            found += self._place(key, engines)
        return found

    def _are_late(self, supervisors: list[WriterFacts], engines: _Engines) -> bool:
        """Whether a fact belongs before one that was applied."""
        for key, of_it in engines.items():
            if key in self._placed:
                if key != self._open or _place_of(of_it[0][0]) < self._placed[key]:
                    return True
            elif of_it[0][0].launch <= self._ended_launch:
                return True
        return any(_place_of(writer) < self._newest for writer in supervisors)

    def _with_engines(
        self,
        event: AnyEvent,
        launch: int,
        engines: _Engines,
    ) -> list[AnyEvent]:
        """A supervisor's fact, with those of the engines that belong before or after it."""
        self._open = None
        if isinstance(event, AttemptEnded):  # the record of its start may have been lost
            key = event.stage, event.attempt
            return [*(self._place(key, engines) if key not in self._placed else []), event]
        if isinstance(event, RunEnded):
            self._ended_launch = max(self._ended_launch, launch)
            ended = [key for key, left in engines.items() if left[0][0].launch <= launch]
            return [*(fact for key in ended for fact in self._place(key, engines)), event]
        if isinstance(event, StageStarted) and (event.stage, event.attempt) not in self._placed:
            self._open = event.stage, event.attempt
            return [event, *self._place(self._open, engines)]
        return [event]

    def _place(self, key: AttemptKey | None, engines: _Engines) -> list[AnyEvent]:
        """The facts of an attempt's engines, which have their place from now on."""
        of_it = engines.pop(key, [])
        self._placed[key] = _place_of(of_it[-1][0]) if of_it else self._placed.get(key, _FIRST)
        return [event for _, facts in of_it for event in facts]

    # ---- the view

    def _apply(self, event: AnyEvent, role: WriterRole) -> None:
        self.applied += 1
        _take(self.view, event, self._order, role)
        self._order += 1
        named = event.redo if isinstance(event, RunStarted) else [getattr(event, "stage", None)]
        for name in named:
            stage = self.view.stages.get(name) if name else None
            if stage is None:
                continue
            stage.forget_lists()
            if stage.state == StageStatus.RUNNING:
                self._running[stage.name] = stage
            else:
                self._running.pop(stage.name, None)

    def _attach(self, writer: WriterFacts) -> None:
        """Connect a writer's tracks, and an engine itself, with their attempts."""
        engine_of = _attempt_of(writer) if writer.lifecycle and writer.role == WriterRole.ENGINE else None
        for key in {*writer.tracks, *([engine_of] if engine_of is not None else [])}:
            of_it = self._of_attempt.setdefault(key, [])
            if writer not in of_it:
                of_it.append(writer)
                of_it.sort(key=lambda w: w.name)
            stage = self.view.stages.get(key[0])
            # What is announced later has its place then: the next facts make the view again.
            self._unannounced |= stage is None or key[1] not in stage.by_attempt
            attempt = self.view.attempt(*key, LAST)
            attempt.tracks = [w.tracks[key] for w in of_it if key in w.tracks]
            attempt.engines = [
                w for w in of_it if w.lifecycle and w.role == WriterRole.ENGINE and _attempt_of(w) == key
            ]
            self.view.stage(key[0]).forget_lists()

    def _unsettle(self) -> None:
        """Restore what the facts say, before the next ones."""
        self.view.state, self.view.paused = self._recorded, False
        for stage in self._settled:
            stage.state = StageStatus.RUNNING
        self._settled = []

    def _settle(self) -> None:
        """Set what follows from all facts: the state of stages that a run left running, and the pause."""
        run = self.view
        self._recorded = run.state
        if run.state != RunStatus.RUNNING:
            quiet = run.state in {RunStatus.STOPPED, RunStatus.SUCCEEDED}
            self._settled = list(self._running.values())
            for stage in self._settled:
                stage.state = StageStatus.STOPPED if quiet else StageStatus.FAILED
            return
        run.paused = any(_paused(stage, run) for stage in self._running.values())
        if run.paused:
            run.state = RunStatus.PAUSED


def _place_of(writer: WriterFacts) -> _Place:
    return writer.launch, writer.name


def _kind_of(writer: WriterFacts) -> tuple[object, ...]:
    """What decides where a writer's facts belong."""
    return writer.launch, writer.role, _supervises(writer), _attempt_of(writer)


def busy_s(writers: Iterable[WriterFacts]) -> float | None:
    """Seconds in which a process of the run worked, by the monotonic clocks of the machines.

    The sampler counts too: it lives as long as the supervisor, which may write nothing for hours.
    """
    boots: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for writer in writers:
        if writer.opened is not None:
            span = (writer.opened.m, max(writer.m, writer.opened.m))
            boots.setdefault((writer.opened.host, writer.opened.boot_id), []).append(span)
    total = 0.0
    for spans in boots.values():
        until = float("-inf")
        for start, end in sorted(spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
    return total if boots else None


def _supervises(writer: WriterFacts) -> bool:
    """Whether a supervisor writes; of a writer whose first record was lost, the next ones say it."""
    if writer.role != WriterRole.UNKNOWN:
        return writer.role == WriterRole.SUPERVISOR
    return any(isinstance(event, RunStarted | StageStarted | RunEnded) for _, event in writer.lifecycle[:3])


def _attempt_of(writer: WriterFacts) -> AttemptKey | None:
    """The attempt whose engine writes; None for a sampler."""
    if writer.opened is not None and writer.opened.stage is not None and writer.opened.attempt is not None:
        return writer.opened.stage, writer.opened.attempt
    started = (event for _, event in writer.lifecycle if isinstance(event, AttemptStarted))
    return next(((event.stage, event.attempt) for event in started), None)


def _number_of(writer: WriterFacts) -> int:
    """The number of the attempt whose engine writes; 0 for others."""
    attempt = _attempt_of(writer)
    return 0 if attempt is None else attempt[1]


def _take(run: RunView, event: AnyEvent, order: Order, role: WriterRole) -> None:
    match event:
        case StageStarted() | StageSucceeded() | StageFailed() | StageSkipped():
            _take_stage(run.stage(event.stage), event, run, order)
        case AttemptStarted():
            _take_attempt_started(run, event, order)
        case AttemptEnded():
            _take_attempt_ended(run, event, order, role)
        case StepsPlanned():
            run.attempt(event.stage, event.attempt, order).total_steps = event.total_steps
        case InputsRecorded() | DevicesUsed() | RanksPlaced() | EngineStalled() | EngineRecovered():
            _take_attempt_fact(run.attempt(event.stage, event.attempt, order), event)
        case GuardTripped():
            run.attempt(event.stage, event.attempt, order).guards.append(event)
        case Evaluated() | CheckpointCommitted() | CheckpointRemoved() | ArtifactCommitted() | GateChecked():
            run.stage(event.stage).keep(event)
        case _:
            _take_run_fact(run, event, order)


def _take_attempt_fact(
    attempt: AttemptView, event: InputsRecorded | DevicesUsed | RanksPlaced | EngineStalled | EngineRecovered
) -> None:
    match event:
        case InputsRecorded():
            attempt.inputs = event
        case DevicesUsed():
            attempt.devices = event
        case RanksPlaced():
            attempt.placed = event
        case EngineStalled():
            attempt.stalled = event
        case EngineRecovered():
            attempt.stalled = None


def _take_run_fact(run: RunView, event: AnyEvent, order: Order) -> None:
    match event:
        case RunStarted():
            _take_run_started(run, event, order)
        case RunEnded():
            run.state, run.reason, run.ended_t = event.state, event.reason, event.t
        case ControlApplied():
            run.controls.append(event)
            if not event.effect.startswith(IGNORED) and Verb.of(event.request) in {Verb.PAUSE, Verb.CONTINUE}:
                run.pauses[event.w] = order, event
        case Gap():
            run.gaps.append(event)
        case _:
            pass


def _take_run_started(run: RunView, event: RunStarted, order: Order) -> None:
    run.id, run.recipe, run.parent = event.run, event.recipe, event.parent
    run.state, run.reason, run.ended_t = RunStatus.RUNNING, "", None
    run.changes |= {change.number: change for change in event.changes}
    run.accepted_inputs += event.accepted_inputs
    if run.started_t is None:
        run.started_t = event.t
    if event.reason.is_from_operator:
        run.operator_start, run.only = order, event.only
    for name, kind in zip(event.stages, event.kinds, strict=False):
        run.stage(name).kind = kind
    run.order = list(dict.fromkeys([*event.stages, *run.order, *run.stages]))  # linear, also for 20,000 stages
    for name in event.stages:
        run.stage(name)
    for name in event.redo:
        stage = run.stage(name)
        stage.state, stage.reason = StageStatus.PENDING, ""
        stage.metrics, stage.succeeded_attempt, stage.gates = {}, None, []


def _take_stage(
    stage: StageView, event: StageStarted | StageSucceeded | StageFailed | StageSkipped, run: RunView, order: Order
) -> None:
    match event:
        case StageStarted():
            attempt = run.attempt(stage.name, event.attempt, order)
            attempt.kind = stage.kind = event.kind
            attempt.announced, attempt.announced_by, attempt.announced_m = True, event.w, event.m
            attempt.adjusted = event.adjusted
            if attempt.started_t is None:
                attempt.started_t = event.t
            if event.steps is not None:
                stage.planned_steps = event.steps
            _begin(stage, event.t)
        case StageSucceeded():
            stage.state, stage.reason, stage.ended_t = StageStatus.SUCCEEDED, "", event.t
            stage.metrics, stage.succeeded_attempt, stage.standing = dict(event.metrics), event.attempt, event
            stage.fingerprint, stage.manifest_sha256 = event.fingerprint, event.manifest_sha256
        case StageFailed():
            stage.state = StageStatus.REFUSED if event.refused else StageStatus.FAILED
            stage.reason, stage.ended_t = event.reason, event.t
        case StageSkipped():
            if stage.state != StageStatus.SUCCEEDED:
                stage.state, stage.reason = StageStatus.SKIPPED, event.reason
                if stage.standing is not None:
                    stage.metrics, stage.succeeded_attempt = dict(stage.standing.metrics), stage.standing.attempt


def _begin(stage: StageView, t: float) -> None:
    if stage.state != StageStatus.RUNNING:
        stage.gates = []
    stage.state, stage.reason, stage.ended_t, stage.succeeded_attempt = StageStatus.RUNNING, "", None, None
    if stage.started_t is None:
        stage.started_t = t


def _take_attempt_started(run: RunView, event: AttemptStarted, order: Order) -> None:
    attempt = run.attempt(event.stage, event.attempt, order)
    attempt.kind, attempt.announced, attempt.pid, attempt.started = event.kind, True, event.pid, event
    attempt.resumed_from, attempt.learning_rate_scale = event.resumed_from, event.learning_rate_scale
    attempt.started_t = event.t if attempt.started_t is None else min(attempt.started_t, event.t)
    if event.total_steps is not None:
        attempt.total_steps = event.total_steps
    stage = run.stage(event.stage)
    stage.kind = stage.kind or event.kind
    if not attempt.ended:
        _begin(stage, event.t)


def _take_attempt_ended(run: RunView, event: AttemptEnded, order: Order, role: WriterRole) -> None:
    attempt = run.attempt(event.stage, event.attempt, order)
    attempt.end(event, role)
    stage = run.stage(event.stage)
    if (
        attempt.reason == EndReason.SUCCEEDED
        or stage.succeeded_attempt == event.attempt
        or stage.current is not attempt
    ):
        return
    if stage.state.has_failed:  # the supervisor's verdict on the stage has priority
        return
    stage.state, stage.ended_t = _OUTCOMES.get(attempt.reason, StageStatus.FAILED), event.t
    stage.reason = attempt.detail or attempt.reason


_OUTCOMES = {EndReason.STOPPED: StageStatus.STOPPED, EndReason.REFUSED: StageStatus.REFUSED}


def _paused(stage: StageView, run: RunView) -> bool:
    attempt = stage.current
    if attempt is None:
        return False
    step, phase = attempt.last_step, attempt.phase
    engine = {event.w for event in (step, phase, attempt.started) if event is not None}
    asked = [run.pauses[name] for name in engine if name in run.pauses]
    pause = max(asked, key=lambda item: item[0])[1] if asked else None
    if pause is not None and Verb.of(pause.request) is Verb.PAUSE:
        moved = step is not None and (step.step > pause.step if pause.step is not None else step.seq > pause.seq)
        if not moved:
            return True
    return phase is not None and phase.name == PHASE_PAUSED and (step is None or phase.seq > step.seq)
