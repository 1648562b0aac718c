"""The learning rate by step, as an object whose state is saved with the scheduler.

The shapes are those of `transformers.optimization`. It is an object, not a function: the checkpoint has its attributes,
so a change during training (a new peak, fewer steps) survives a resume.
"""

from __future__ import annotations

import math
from typing import Any

SHAPES = ("cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup", "inverse_sqrt")
TIMESCALE = 10_000
"""Steps after which `inverse_sqrt` without a warm-up has fallen to 1/sqrt(2), as in transformers."""


def warmup_steps(value: float, total_steps: int) -> int:
    """Warm-up steps from a recipe's `warmup_steps`; a value below 1 is a share of all steps, rounded up."""
    return math.ceil(value * total_steps) if value < 1 else int(value)


class Schedule:
    """Multiplier of the recipe's learning rate, called with the number of steps done.

    Attributes:
        shape: one of `SHAPES`.
        warmup: steps of linear warm-up; its first step has a learning rate of zero.
        total: the step at which the shape ends.
        min_rate: the end of `cosine_with_min_lr`, as a share of the peak.
        scale: factor on the peak from retries and live changes.
        retry_scale: the part of `scale` from retries.
        ramp_from: the step from which a retry raises the learning rate again.
        ramp_steps: steps of that second warm-up; 0 without one.
        ramp_trips: number of tripped guards for which it was set.
    """

    def __init__(self, shape: str, *, warmup: int, total: int, min_rate: float, retry_scale: float = 1.0) -> None:
        if shape not in SHAPES:
            raise ValueError(f"shape — got {shape!r}; allowed {', '.join(SHAPES)}")
        self.shape = shape
        self.warmup = warmup
        self.total = total
        self.min_rate = min_rate
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
            return done / max(1, self.warmup)
        if self.shape in {"constant", "constant_with_warmup"}:
            return 1.0
        if self.shape == "inverse_sqrt":
            timescale = self.warmup or TIMESCALE
            return 1.0 / math.sqrt((done + timescale - self.warmup) / timescale)
        if self.shape == "linear":
            return max(0.0, (self.total - done) / max(1, self.total - self.warmup))
        progress = min(1.0, (done - self.warmup) / max(1, self.total - self.warmup))
        cosine = max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
        return cosine * (1.0 - self.min_rate) + self.min_rate if self.shape == "cosine_with_min_lr" else cosine

    def retry_with(self, retry_scale: float) -> None:
        """Replace the retry scale that was saved with the state."""
        self.scale *= retry_scale / self.retry_scale
        self.retry_scale = retry_scale


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
