"""The next action of a run: a pure function of the facts in its journal.

The supervisor calls it after every change. A supervisor that adopts a run calls it with the same facts, so the run
continues where its last supervisor died.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cockpit.schedule.facts import AttemptFacts, RunFacts
from cockpit.schedule.lowered_rate import UNCHANGED, lowered_before
from cockpit.schedule.memory_plan import memory_plan, ran_out
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.events.runs import Adjusted, RunStarted
from engines.guards import DAMAGED_START, NO_IMPROVEMENT
from engines.words import EndReason, RunStatus
from recipes import quantities
from recipes.stages.fields import StageFields, TrainingRetry
from recipes.stages.registry import row_of
from recipes.stages.training import TrainingFields


@dataclass(frozen=True)
class RunStage:
    """Start an attempt. `resume`: look for a checkpoint; `at_step`: the checkpoint that the operator named."""

    stage: str
    resume: bool
    healthy_only: bool = False
    at_step: int | None = None
    learning_rate_scale: float = 1.0
    guard_trips: int = 0
    why: str = ""
    adjusted: tuple[Adjusted, ...] = ()
    """fields that have other values than in the recipe, because memory ran out"""
    note: str = ""
    """what an operator's resume keeps of earlier retries, or replaces; empty where that is nothing"""


@dataclass(frozen=True)
class EndRun:
    """End the run: its state, the reason, and the stage that failed, if one did."""

    state: RunStatus
    reason: str = ""
    failed_stage: str | None = None


@dataclass(frozen=True)
class NextActions:
    """Stages that are done, in order, and the next action."""

    done: list[str]
    action: RunStage | EndRun


def next_action(plan: RunRecipe, facts: RunFacts, is_done: Callable[[str], bool]) -> NextActions:
    """The next action of the run.

    Args:
        plan: the run's recipe.
        facts: from the journal.
        is_done: whether a stage's last success has the present fingerprint and its output verifies.
    """
    operator = facts.operator
    # A later start may ask for a stage that the launch had left out.
    only = set((operator.only if operator else []) or plan.wanted())
    done: list[str] = []
    for name in plan.order:
        if name not in only:
            continue
        if not must_rerun(plan, facts, name) and is_done(name):
            done.append(name)
            continue
        return NextActions(done, _run_or_end(plan, facts, name))
    return NextActions(done, EndRun(RunStatus.SUCCEEDED))


def open_rerun(plan: RunRecipe, facts: RunFacts, name: str) -> RunStarted | None:
    """The last request to rerun this stage that no success has answered yet; it outlives stops and failures."""
    asked = [s for s in facts.operator_starts() if name in _redone(plan, s) or s.checkpoint_stage == name]
    return asked[-1] if asked and not facts.succeeded_since(asked[-1], name) else None


def must_rerun(plan: RunRecipe, facts: RunFacts, name: str) -> bool:
    """Whether an operator requested to rerun the stage, or one that it depends on, and it has not succeeded since."""
    again = open_rerun(plan, facts, name)
    return again is not None and name in _redone(plan, again)


def _redone(plan: RunRecipe, start: RunStarted) -> set[str]:
    """The stages that a start reruns: those that it names, and those that depend on them."""
    return plan.descendants(set(start.redo)) if start.redo else set()


def _run_or_end(plan: RunRecipe, facts: RunFacts, name: str) -> RunStage | EndRun:
    stage, again = plan.stage(name), open_rerun(plan, facts, name)
    attempts = facts.attempts_since(facts.operator, name)
    trains = row_of(stage).trains
    # A rerun begins at step 0, or at the checkpoint that the operator named, until an engine has started with it. Then
    # its own checkpoints are the training's past, also after a stop.
    fresh = again is not None and not any(attempt.started for attempt in facts.attempts_since(again, name))
    named = again is not None and again.checkpoint is not None and again.checkpoint_stage == name
    resume = trains and (not fresh or named)
    at_step = again.checkpoint if again and named and fresh else None
    memory = memory_plan(stage, [attempt for _, attempt in sorted(facts.stage(name).attempts.items())])
    before = lowered_before(facts, name, _last_rerun(plan, facts, name), stage.retry) if resume else UNCHANGED
    if not attempts:
        earlier = facts.attempts_since(_last_rerun(plan, facts, name), name) if resume else []
        return RunStage(
            name,
            resume=resume,
            healthy_only=at_step is None and any(attempt.reason == EndReason.GUARD for attempt in earlier),
            at_step=at_step,
            learning_rate_scale=before.scale,
            guard_trips=before.trips,
            why="first attempt",
            adjusted=memory.adjusted,
            note=before.note,
        )
    last = attempts[-1]
    if last.reason == EndReason.STOPPED:
        return EndRun(RunStatus.STOPPED, f"{name} was stopped{': ' if last.detail else ''}{last.detail}")
    if last.reason == EndReason.REFUSED:
        return EndRun(RunStatus.REFUSED, last.detail, failed_stage=name)
    what = last.detail or last.reason
    hopeless = last.guard == NO_IMPROVEMENT or DAMAGED_START in last.detail
    if last.reason == EndReason.INPUTS_CHANGED or (last.reason == EndReason.GUARD and hopeless):
        return EndRun(RunStatus.FAILED, f"{name}: {what}", failed_stage=name)
    if memory.exhausted:
        return EndRun(RunStatus.FAILED, f"{name}: {what}; {memory.exhausted}", failed_stage=name)
    most = stage.retry.max_attempts
    # What a retry changed after memory ran out is bounded on its own, so those attempts do not count.
    counted = [attempt for attempt in attempts if not (isinstance(stage, TrainingFields) and ran_out(attempt))]
    if most == 1 or len(counted) >= most:
        advice = _advice(stage, last)
        return EndRun(
            RunStatus.FAILED, f"{name}: {what} (attempt {len(attempts)} of {most}){advice}", failed_stage=name
        )
    trips = sum(1 for attempt in attempts if attempt.reason == EndReason.GUARD)
    factor = stage.retry.learning_rate_factor if isinstance(stage.retry, TrainingRetry) else 1.0
    return RunStage(
        name,
        resume=resume,
        healthy_only=trips > 0,
        at_step=at_step,
        learning_rate_scale=before.scale * factor**trips,
        guard_trips=before.trips + trips,
        why=f"retry after: {what}",
        adjusted=memory.adjusted,
    )


def _last_rerun(plan: RunRecipe, facts: RunFacts, name: str) -> RunStarted | None:
    """The last request to rerun this stage: what happened before it belongs to another training."""
    return next((start for start in reversed(facts.operator_starts()) if name in _redone(plan, start)), None)


def _advice(stage: StageFields, last: AttemptFacts) -> str:
    """What a resume can change after a guard has ended the last attempt, and what that costs; else empty."""
    if last.reason != EndReason.GUARD or not isinstance(stage, TrainingFields):
        return ""
    scale = last.started.learning_rate_scale if last.started is not None else 1.0
    rate = quantities.exact(stage.learning_rate * scale / 2)
    return (
        f"; a resume with --set {stage.name}.learning_rate={rate} is steadier, and needs more steps for the same loss"
    )
