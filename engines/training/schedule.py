"""The learning rate by step, as an object whose state is saved with the scheduler.

The shapes are those of `transformers.optimization`. It is an object, not a function: the checkpoint has its attributes,
so a change during training (a new peak, fewer steps) survives a resume.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from recipes.stages.training import TrainingFields

SHAPES = get_args(TrainingFields.model_fields["lr_scheduler_type"].annotation)
TIMESCALE = 10_000
"""Steps after which `inverse_sqrt` without a warm-up has fallen to 1/sqrt(2), as in transformers."""


def warmup_steps(value: float, total_steps: int) -> int:
    """Warm-up steps from a recipe's `warmup_steps`; a value below 1 is a share of all steps, rounded up."""
    return math.ceil(value * total_steps) if value < 1 else int(value)


@dataclass(frozen=True)
class Form:
    """What a shape needs besides its name, its warm-up and its steps.

    Attributes:
        cycles: falls of `cosine_with_restarts`.
        power: exponent of `polynomial`.
        end_rate: the end of `polynomial`, as a share of the peak.
        decay_steps: steps of the fall of `warmup_stable_decay`.
        decay: its shape.
    """

    cycles: int = 1
    power: float = 1.0
    end_rate: float = 0.0
    decay_steps: int = 0
    decay: str = "cosine"


class Schedule:
    """Multiplier of the recipe's learning rate, called with the number of steps done.

    Attributes:
        shape: one of `SHAPES`.
        warmup: steps of linear warm-up; its first step has a learning rate of zero.
        total: the step at which the shape ends.
        min_rate: the end of `cosine_with_min_lr` and `warmup_stable_decay`, as a share of the peak.
        form: what else the shape needs, as the table of a `Form`: a checkpoint has plain values only.
        scale: factor on the peak from retries and live changes.
        retry_scale: the part of `scale` from retries.
        ramp_from: the step from which a retry raises the learning rate again.
        ramp_steps: steps of that second warm-up; 0 without one.
        ramp_trips: number of tripped guards for which it was set.
    """

    def __init__(
        self,
        shape: str,
        *,
        warmup: int,
        total: int,
        min_rate: float,
        form: Form | None = None,
        retry_scale: float = 1.0,
    ) -> None:
        if shape not in SHAPES:
            raise ValueError(f"shape — got {shape!r}; allowed {', '.join(SHAPES)}")
        self.shape = shape
        self.warmup = warmup
        self.total = total
        self.min_rate = min_rate
        self.form: dict[str, Any] = asdict(form or Form())
        self.scale = retry_scale
        self.retry_scale = retry_scale
        self.ramp_from = self.ramp_steps = self.ramp_trips = 0

    def __call__(self, done: int) -> float:
        return self.scale * self.shape_at(done) * self._ramp_at(done)

    def warm_up_again(self, step: int, steps: int, trips: int) -> bool:
        """Raise the learning rate from zero over `steps` again, once for this number of tripped guards; False if that
        was done before."""
        if trips <= self.ramp_trips:
            return False
        self.ramp_from, self.ramp_steps, self.ramp_trips = step, steps, trips
        return True

    def _ramp_at(self, done: int) -> float:
        if not self.ramp_from <= done < self.ramp_from + self.ramp_steps:
            return 1.0
        return (done - self.ramp_from) / self.ramp_steps

    def shape_at(self, done: int) -> float:
        """The multiplier before `scale`, between 0 and 1."""
        if done < self.warmup:
            rising = done / max(1, self.warmup)
            return self._above_the_end(rising) if self.shape == "warmup_stable_decay" else rising
        if self.shape in {"constant", "constant_with_warmup"}:
            return 1.0
        if self.shape == "inverse_sqrt":
            timescale = self.warmup or TIMESCALE
            return 1.0 / math.sqrt((done + timescale - self.warmup) / timescale)
        if self.shape == "linear":
            return max(0.0, (self.total - done) / max(1, self.total - self.warmup))
        if self.shape == "warmup_stable_decay":
            start = max(self.warmup, self.total - self.form["decay_steps"])
            return self._above_the_end(1.0 if done < start else self._fall((done - start) / max(1, self.total - start)))
        progress = min(1.0, (done - self.warmup) / max(1, self.total - self.warmup))
        if self.shape == "polynomial":
            end = self.form["end_rate"]
            return float((1.0 - end) * (1.0 - progress) ** self.form["power"] + end)
        if self.shape == "cosine_with_restarts":
            return _cosine(self.form["cycles"] * progress % 1.0) if progress < 1.0 else 0.0
        return self._above_the_end(_cosine(progress)) if self.shape == "cosine_with_min_lr" else _cosine(progress)

    def _above_the_end(self, factor: float) -> float:
        return factor * (1.0 - self.min_rate) + self.min_rate

    def _fall(self, progress: float) -> float:
        """From 1 to 0 in the shape of `warmup_stable_decay`."""
        if progress >= 1.0:
            return 0.0
        falls = {"linear": 1.0 - progress, "1-sqrt": 1.0 - math.sqrt(progress), "cosine": _cosine(progress)}
        return falls[self.form["decay"]]

    def take_shape(self, other: Schedule) -> None:
        """Have the shape of another schedule, and keep its own scale and end."""
        self.shape, self.warmup, self.min_rate, self.form = other.shape, other.warmup, other.min_rate, other.form

    def retry_with(self, retry_scale: float) -> None:
        """Replace the retry scale that was saved with the state."""
        self.scale *= retry_scale / self.retry_scale
        self.retry_scale = retry_scale


def _cosine(progress: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def schedule_for(stage: TrainingFields, total: int, retry_scale: float) -> Schedule:
    """The schedule of a stage's fields for a number of steps."""
    form = Form(
        cycles=stage.num_cycles,
        power=stage.power,
        end_rate=stage.lr_end / stage.learning_rate,
        decay_steps=warmup_steps(stage.num_decay_steps, total),
        decay=stage.decay_type,
    )
    return Schedule(
        stage.lr_scheduler_type,
        warmup=warmup_steps(stage.warmup_steps, total),
        total=total,
        min_rate=stage.min_lr_rate,
        form=form,
        retry_scale=retry_scale,
    )


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule of a LambdaLR; all its parameter groups share the object."""
    schedule = scheduler.lr_lambdas[0]
    assert isinstance(schedule, Schedule)
    return schedule


def apply_now(scheduler: Any) -> None:
    """Set the optimizer's learning rate to the schedule's present value, without counting a step."""
    rates = [
        base * multiplier(scheduler.last_epoch)
        for base, multiplier in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
