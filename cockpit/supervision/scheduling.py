"""What a run does next: a pure decision from the facts in its journal.

The supervisor asks after every change; a supervisor that adopts a run asks the same question of the same facts, so a
run goes on wherever its last supervisor died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cockpit.supervision.resolved_recipe import RunRecipe
from engines.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    GuardTripped,
    ResumedFrom,
    RunEnded,
    RunStarted,
    StageStarted,
    StageSucceeded,
    WriterOpened,
)
from engines.words import EndReason, RunStatus, WriterRole
from recipes.stages.fields import TrainingRetry
from recipes.stages.registry import row_of


@dataclass
class AttemptFacts:
    """One attempt as engine and supervisor told it; their records may come in any order."""

    number: int
    launched_t: float = 0.0
    started: AttemptStarted | None = None
    opened: WriterOpened | None = None
    engine_reason: EndReason = EndReason.NOT_GIVEN
    supervisor_reason: EndReason = EndReason.NOT_GIVEN
    engine_detail: str = ""
    supervisor_detail: str = ""
    guard: str = ""
    saved_step: int | None = None

    @property
    def reason(self) -> EndReason:
        """Why it ended; the engine knows best. Empty while it has not ended."""
        return self.engine_reason or self.supervisor_reason

    @property
    def detail(self) -> str:
        """What is said about it, by whoever said something."""
        return self.engine_detail or self.supervisor_detail

    @property
    def never_began(self) -> bool:
        """Announced, and its supervisor died before there was a process: it does not count as an attempt."""
        return self.started is None and self.reason in {EndReason.NOT_GIVEN, EndReason.NOT_STARTED}


@dataclass
class StageFacts:
    """One stage's attempts and successes."""

    attempts: dict[int, AttemptFacts] = field(default_factory=dict)
    successes: list[tuple[float, StageSucceeded]] = field(default_factory=list)

    def attempt(self, number: int) -> AttemptFacts:
        return self.attempts.setdefault(number, AttemptFacts(number))

    def since(self, t: float) -> list[AttemptFacts]:
        """Attempts launched at or after `t` that began, oldest first."""
        return [
            a
            for _, a in sorted(self.attempts.items())
            if max(a.launched_t, a.started.t if a.started else 0) >= t and not a.never_began
        ]

    @property
    def saved_step(self) -> int | None:
        """The highest step of which the journal tells a checkpoint; None when it tells none."""
        return max((a.saved_step for a in self.attempts.values() if a.saved_step is not None), default=None)

    def lineage(self) -> dict[int, int | None]:
        """Attempts whose checkpoints are this training's past, each with the highest step that still counts."""
        allowed: dict[int, int | None] = {}
        cap: int | None = None
        begun = [a.number for a in self.attempts.values() if a.started is not None]
        number = max(begun, default=None)
        while number is not None and number not in allowed:
            allowed[number] = cap
            facts = self.attempts.get(number)
            origin: ResumedFrom | None = facts.started.resumed_from if facts and facts.started else None
            if origin is None:
                break
            cap = origin.step if cap is None else min(cap, origin.step)
            number = origin.attempt
        return allowed


@dataclass
class RunFacts:
    """What scheduling needs to know. `operator` is the last launch or resume; adoptions change nothing."""

    stages: dict[str, StageFacts] = field(default_factory=dict)
    operator: RunStarted | None = None
    ended: RunEnded | None = None
    latest_start: RunStarted | None = None
    roles: dict[str, WriterRole] = field(default_factory=dict)
    """of each writer, by its id"""

    def stage(self, name: str) -> StageFacts:
        return self.stages.setdefault(name, StageFacts())

    @property
    def operator_t(self) -> float:
        return self.operator.t if self.operator else 0.0

    @property
    def has_ended(self) -> bool:
        return self.ended is not None and (self.latest_start is None or _later(self.ended, self.latest_start))


def _later(a: AnyEvent, b: AnyEvent) -> bool:
    return (a.t, a.w, a.seq) > (b.t, b.w, b.seq)


def add_facts(facts: RunFacts, events: Iterable[AnyEvent]) -> None:
    """Take more events into the facts. Their order between writers does not matter."""
    for event in events:
        match event:
            case RunStarted() | RunEnded():
                _take_run(facts, event)
            case StageSucceeded():
                facts.stage(event.stage).successes.append((event.t, event))
            case StageStarted() | AttemptStarted() | GuardTripped():
                _take_attempt(facts.stage(event.stage).attempt(event.attempt), event)
            case AttemptEnded():
                _take_end(facts, event)
            case CheckpointCommitted():
                attempt = facts.stage(event.stage).attempt(event.attempt)
                attempt.saved_step = max(event.step, attempt.saved_step or 0)
            case WriterOpened():
                facts.roles[event.w] = event.role
                if event.role == WriterRole.ENGINE and event.stage is not None and event.attempt is not None:
                    facts.stage(event.stage).attempt(event.attempt).opened = event
            case _:
                pass


def _take_run(facts: RunFacts, event: RunStarted | RunEnded) -> None:
    if isinstance(event, RunEnded):
        if facts.ended is None or _later(event, facts.ended):
            facts.ended = event
        return
    if event.reason.is_operators and (facts.operator is None or _later(event, facts.operator)):
        facts.operator = event
    if facts.latest_start is None or _later(event, facts.latest_start):
        facts.latest_start = event


def _take_attempt(attempt: AttemptFacts, event: StageStarted | AttemptStarted | GuardTripped) -> None:
    match event:
        case StageStarted():
            attempt.launched_t = event.t
        case AttemptStarted():
            attempt.started = event
        case GuardTripped():
            attempt.guard = event.guard


def _take_end(facts: RunFacts, event: AttemptEnded) -> None:
    attempt = facts.stage(event.stage).attempt(event.attempt)
    if facts.roles.get(event.w, WriterRole.UNKNOWN).is_supervisors_record(event.exit):
        attempt.supervisor_reason, attempt.supervisor_detail = event.reason, event.detail
    else:
        attempt.engine_reason, attempt.engine_detail = event.reason, event.detail


@dataclass(frozen=True)
class RunStage:
    """Start an attempt. `resume` says whether to look for a checkpoint; `at_step` which one an operator named."""

    stage: str
    resume: bool
    healthy_only: bool = False
    at_step: int | None = None
    learning_rate_scale: float = 1.0
    why: str = ""


@dataclass(frozen=True)
class EndRun:
    """The run is over: its state, why, and the stage that failed, if one did."""

    state: RunStatus
    reason: str = ""
    failed_stage: str | None = None


@dataclass(frozen=True)
class NextActions:
    """Stages that need nothing, in order, and what to do then."""

    done: list[str]
    action: RunStage | EndRun


def next_action(plan: RunRecipe, facts: RunFacts, is_done: Callable[[str], bool]) -> NextActions:
    """What the run does next.

    Args:
        plan: the run's recipe.
        facts: from the journal.
        is_done: whether a stage's last success carries today's fingerprint and its output verifies.
    """
    operator = facts.operator
    redo = plan.descendants(set(operator.redo)) if operator and operator.redo else set()
    only = set(operator.only) if operator and operator.only else None
    done: list[str] = []
    for name in plan.wanted():
        if only is not None and name not in only:
            continue
        stage_facts = facts.stage(name)
        fresh = name not in redo or any(t >= facts.operator_t for t, _ in stage_facts.successes)
        if fresh and is_done(name):
            done.append(name)
            continue
        return NextActions(done, _run_or_end(plan, facts, name, redo))
    return NextActions(done, EndRun(RunStatus.SUCCEEDED))


def _run_or_end(plan: RunRecipe, facts: RunFacts, name: str, redo: set[str]) -> RunStage | EndRun:
    operator, stage = facts.operator, plan.stage(name)
    attempts = facts.stage(name).since(facts.operator_t)
    trains = row_of(stage).trains
    # What the operator asked for holds until an engine has begun with it: until then, the line of the past is the old one.
    fresh = not any(attempt.started for attempt in attempts)
    named = operator is not None and operator.checkpoint is not None and operator.checkpoint_stage == name
    resume = trains and (not fresh or named or name not in redo)
    at_step = operator.checkpoint if operator and named and fresh else None
    if not attempts:
        return RunStage(name, resume=resume, at_step=at_step, why="first attempt")
    last = attempts[-1]
    if last.reason == EndReason.STOPPED:
        return EndRun(RunStatus.STOPPED, f"{name} was stopped")
    if last.reason == EndReason.REFUSED:
        return EndRun(RunStatus.REFUSED, last.detail, failed_stage=name)
    what = last.detail or last.reason
    if len(attempts) >= stage.retry.max_attempts:
        return EndRun(
            RunStatus.FAILED,
            f"{name}: {what} (attempt {len(attempts)} of {stage.retry.max_attempts})",
            failed_stage=name,
        )
    trips = sum(1 for attempt in attempts if attempt.reason == EndReason.GUARD)
    factor = stage.retry.learning_rate_factor if isinstance(stage.retry, TrainingRetry) else 1.0
    return RunStage(
        name,
        resume=resume,
        healthy_only=trips > 0,
        at_step=at_step,
        learning_rate_scale=factor**trips,
        why=f"retry after: {what}",
    )
