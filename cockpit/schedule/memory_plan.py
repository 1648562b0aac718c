"""What a retry changes after memory ran out: a pure function of the fields and of the attempts in the journal.

The rows of each optimizer step stay the same, so the training is the same up to the order of sums. A change is a fact
of the attempt that has it (`StageStarted.adjusted`). Later attempts keep it, also after a resume and under another
supervisor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cockpit.schedule.facts import AttemptFacts
from engines.events.runs import Adjusted
from engines.words import PHASE_EVALUATING, EndReason
from recipes.stages.fields import ModelRetry, StageFields
from recipes.stages.steps import smaller_batch
from recipes.stages.training import TrainingFields

ROWS = "per_device_train_batch_size"
ACCUMULATION = "gradient_accumulation_steps"
EVALUATED_ROWS = "per_device_eval_batch_size"
CHECKPOINTING = "gradient_checkpointing"
MAX_REASON = 300
BEFORE_ROWS = frozenset({"importing", "loading"})
"""Phases of an engine in which no batch is in memory yet."""


@dataclass(frozen=True)
class MemoryPlan:
    """The changed fields of the next attempt, and why none can change any more; empty while one can."""

    adjusted: tuple[Adjusted, ...] = ()
    exhausted: str = ""


def ran_out(attempt: AttemptFacts) -> bool:
    """Whether the attempt ended because memory ran out, as far as its engine or the kernel say so."""
    return attempt.reason == EndReason.OUT_OF_MEMORY or bool(attempt.memory)


def memory_plan(stage: StageFields, attempts: Iterable[AttemptFacts]) -> MemoryPlan:
    """The changes for the next attempt of a stage.

    Args:
        stage: its fields, by the recipe.
        attempts: all its attempts in this run, oldest first.
    """
    if not isinstance(stage, TrainingFields):
        return MemoryPlan()
    known = [attempt for attempt in attempts if not attempt.never_began]
    last = known[-1] if known else None
    standing = _standing(stage, last.adjusted if last is not None else [])
    if last is None or not ran_out(last):
        return MemoryPlan(standing)
    if stage.retry.max_attempts == 1:
        way = f"--set {stage.name}.retry.max_attempts=3"
        return MemoryPlan(
            standing, f"a resume with {way} trains on with half the micro-batch, and the same rows in a step"
        )
    fields = adjusted_fields(stage, standing)
    changes = _next(stage.retry, fields, last.phase, sum(change.field == ROWS for change in standing))
    if isinstance(changes, str):
        return MemoryPlan(standing, changes)
    because = last.detail[:MAX_REASON]
    fresh = [
        Adjusted(field=name, old=json.dumps(fields[name]), new=json.dumps(new), attempt=last.number, because=because)
        for name, new in changes.items()
    ]
    return MemoryPlan((*standing, *fresh))


def adjusted_fields(stage: TrainingFields, adjusted: Iterable[Adjusted]) -> dict[str, Any]:
    """The present values of the fields that a change may have."""
    fields = {name: getattr(stage, name) for name in (ROWS, ACCUMULATION, EVALUATED_ROWS, CHECKPOINTING)}
    return fields | new_values(adjusted)


def new_values(adjusted: Iterable[Adjusted]) -> dict[str, Any]:
    """The newest value of each changed field. A number and a truth value are the same text in TOML and in JSON."""
    return {change.field: json.loads(change.new) for change in adjusted}


def _standing(stage: TrainingFields, adjusted: Iterable[Adjusted]) -> tuple[Adjusted, ...]:
    """The changes that are in effect: none of a field whose value in the recipe a resume has changed since."""
    fields = {name: json.dumps(value) for name, value in adjusted_fields(stage, ()).items()}
    found = []
    for change in adjusted:
        if fields.get(change.field) == change.old:
            fields[change.field] = change.new
            found.append(change)
    return tuple(found)


def _next(retry: ModelRetry, fields: Mapping[str, Any], phase: str, halvings: int) -> dict[str, Any] | str:
    if phase == PHASE_EVALUATING:
        rows = int(fields[EVALUATED_ROWS])
        if rows > 1:
            return {EVALUATED_ROWS: rows // 2}
        return f"an evaluation of one row ({EVALUATED_ROWS} = 1) is too large"
    if phase in BEFORE_ROWS:
        return (
            f"memory ran out while {phase}, before the first row: a smaller micro-batch does not help; a smaller model,"
            " load_in_4bit for an adapter, or a machine with more memory does"
        )
    smaller = smaller_batch(fields[ROWS], fields[ACCUMULATION]) if halvings < retry.out_of_memory_halvings else None
    if smaller is not None:
        return dict(zip((ROWS, ACCUMULATION), smaller, strict=True))
    if not fields[CHECKPOINTING]:
        return {CHECKPOINTING: True}
    return (
        f"{ROWS} is {fields[ROWS]} after {halvings} halvings, and {CHECKPOINTING} is on; a shorter max_length, a"
        " smaller model or a device with more memory needs a new run"
    )
