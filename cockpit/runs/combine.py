"""Combine the facts of several writers into the view of one run.

The lifecycle facts of all writers are ordered by the numbers in them, independent of the order of arrival and of wall
clocks, and then applied one after another. They are few, so this is repeated whenever there is a new one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from cockpit.runs.stage_view import LAST, AttemptView, Order, RunView, StageView
from cockpit.runs.writer_facts import AttemptKey, WriterFacts
from engines.events import (
    AnyEvent,
    ArtifactCommitted,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointRemoved,
    ControlApplied,
    DevicesUsed,
    EngineRecovered,
    EngineStalled,
    Evaluated,
    Gap,
    GateChecked,
    GuardTripped,
    InputsRecorded,
    RunEnded,
    RunStarted,
    StageFailed,
    StageSkipped,
    StageStarted,
    StageSucceeded,
    StepsPlanned,
)
from engines.words import IGNORED, PHASE_PAUSED, EndReason, RunStatus, StageStatus, Verb, WriterRole


def combine(writers: Iterable[WriterFacts]) -> RunView:
    """The view of the run of these writers."""
    writers = sorted(writers, key=lambda w: w.name)
    run = RunView()
    roles = {w.name: w.role for w in writers}
    for order, event in _merged(writers):
        _take(run, event, order, roles.get(event.w, WriterRole.UNKNOWN))
    for writer in writers:
        for (stage, number), track in writer.tracks.items():
            run.attempt(stage, number, LAST).tracks.append(track)
        key = _attempt_of(writer)
        if key is not None and writer.lifecycle and writer.role == WriterRole.ENGINE:
            run.attempt(*key, LAST).engines.append(writer)
    _settle_stages(run)
    return run


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


def _merged(writers: Sequence[WriterFacts]) -> Iterator[tuple[Order, AnyEvent]]:
    """The lifecycle facts in the order in which they are applied.

    Supervisors follow one another by their numbers; an attempt's engine follows the record that starts it. No clock has
    a part in it. Writers of older versions, which have no numbers, come first, by their clocks.
    """
    by_clock = [w for w in writers if not w.launch]
    streams = ([((t, w.name, n), event) for n, (t, event) in enumerate(w.lifecycle)] for w in by_clock)
    old = [event for _, event in heapq.merge(*streams, key=lambda item: item[0])]
    yield from enumerate([*old, *_by_number([w for w in writers if w.launch])])


def _by_number(writers: list[WriterFacts]) -> Iterator[AnyEvent]:
    engines: dict[AttemptKey | None, list[WriterFacts]] = {}
    supervisors: list[WriterFacts] = []
    for writer in sorted(writers, key=lambda w: (w.launch, w.name)):
        if _supervises(writer):
            supervisors.append(writer)
        else:
            engines.setdefault(_attempt_of(writer), []).append(writer)
    for writer in supervisors:
        for _, event in writer.lifecycle:
            if isinstance(event, AttemptEnded):  # the record of its start may have been lost
                yield from _facts(engines.pop((event.stage, event.attempt), []))
            elif isinstance(event, RunEnded):
                ended = [key for key, left in engines.items() if left[0].launch <= writer.launch]
                yield from _facts([w for key in ended for w in engines.pop(key)])
            yield event
            if isinstance(event, StageStarted):
                yield from _facts(engines.pop((event.stage, event.attempt), []))
    yield from _facts([w for left in engines.values() for w in left])


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


def _facts(writers: Iterable[WriterFacts]) -> Iterator[AnyEvent]:
    return (event for writer in writers for _, event in writer.lifecycle)


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
        case InputsRecorded() | DevicesUsed() | EngineStalled() | EngineRecovered():
            _take_attempt_fact(run.attempt(event.stage, event.attempt, order), event)
        case GuardTripped():
            run.attempt(event.stage, event.attempt, order).guards.append(event)
        case Evaluated() | CheckpointCommitted() | CheckpointRemoved() | ArtifactCommitted() | GateChecked():
            run.stage(event.stage).keep(event)
        case _:
            _take_run_fact(run, event, order)


def _take_attempt_fact(
    attempt: AttemptView, event: InputsRecorded | DevicesUsed | EngineStalled | EngineRecovered
) -> None:
    match event:
        case InputsRecorded():
            attempt.inputs = event
        case DevicesUsed():
            attempt.devices = event
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


def _settle_stages(run: RunView) -> None:
    """Set what follows from all facts: the state of stages that a run left running, and whether the run is paused."""
    if run.state != RunStatus.RUNNING:
        for stage in run.stages.values():
            if stage.state == StageStatus.RUNNING:
                quiet = run.state in {RunStatus.STOPPED, RunStatus.SUCCEEDED}
                stage.state = StageStatus.STOPPED if quiet else StageStatus.FAILED
        return
    running = [stage for stage in run.stages.values() if stage.state == StageStatus.RUNNING]
    run.paused = any(_paused(stage, run.controls) for stage in running)
    if run.paused:
        run.state = RunStatus.PAUSED


def _paused(stage: StageView, controls: list[ControlApplied]) -> bool:
    attempt = stage.current
    if attempt is None:
        return False
    step, phase = attempt.last_step, attempt.phase
    engine = {event.w for event in (step, phase, attempt.started) if event is not None}
    asked = [
        c
        for c in controls
        if c.w in engine and not c.effect.startswith(IGNORED) and Verb.of(c.request) in {Verb.PAUSE, Verb.CONTINUE}
    ]
    if asked and Verb.of(asked[-1].request) is Verb.PAUSE:
        pause = asked[-1]
        moved = step is not None and (step.step > pause.step if pause.step is not None else step.seq > pause.seq)
        if not moved:
            return True
    return phase is not None and phase.name == PHASE_PAUSED and (step is None or phase.seq > step.seq)
