"""The steps of a training stage and the work that is due at them: the engine follows it, and plans count it."""

from __future__ import annotations

import math

from recipes.stages.training import TrainingFields


def steps_per_epoch(stage: TrainingFields, examples: int) -> int:
    """Optimizer steps of one pass over the data; the last step may have a smaller window.

    Each forward pass takes the rows of all processes.
    """
    batches = math.ceil(examples / (stage.per_device_train_batch_size * stage.launch.world_size))
    return max(1, math.ceil(batches / stage.gradient_accumulation_steps))


def planned_steps(stage: TrainingFields, examples: int) -> int:
    """Optimizer steps of the whole stage."""
    if stage.max_steps is not None:
        return stage.max_steps
    return math.ceil(stage.num_train_epochs * steps_per_epoch(stage, examples))


AT_THE_END = 1 << 62
"""An interval that no training reaches: work that is due at the last step only."""


def eval_every(stage: TrainingFields, examples: int) -> int | None:
    """Steps between two evaluations; None where the stage does not evaluate."""
    if stage.eval_strategy == "epoch":
        return steps_per_epoch(stage, examples)
    return stage.eval_steps if stage.eval_strategy == "steps" else None


def save_every(stage: TrainingFields, examples: int) -> int:
    """Steps between two checkpoints."""
    if stage.save_strategy == "epoch":
        return steps_per_epoch(stage, examples)
    return stage.save_steps if stage.save_strategy == "steps" else AT_THE_END


def smaller_batch(rows: int, accumulation: int) -> tuple[int, int] | None:
    """Rows per forward pass and accumulation steps with at most half the rows, and exactly the same rows in each step.

    Half the rows and twice the steps where the number is even; else the largest number of rows up to the half that
    divides the effective batch. None for a single row.
    """
    effective = rows * accumulation
    found = next((smaller for smaller in range(rows // 2, 0, -1) if effective % smaller == 0), None)
    return None if found is None else (found, effective // found)


def is_due(step: int, every: int | None, last: int) -> bool:
    """Whether work that is due every `every` steps, and at the last step, is due after this step; None: never."""
    return every is not None and (step >= last or step % every == 0)


def times_due(every: int | None, last: int) -> int:
    """How often `is_due` holds from step 1 to the last step."""
    return 0 if every is None else -(-last // every)
