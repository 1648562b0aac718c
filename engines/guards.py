"""Guards: checks that refuse a step before the optimizer applies it, as pure functions of the step's measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from engines.words import EndReason

Guard = Literal["nonfinite_loss", "nonfinite_grad_norm", "grad_norm", "loss_spike", "no_improvement", "wall_clock"]
NO_IMPROVEMENT: Guard = "no_improvement"
"""It ends the stage: a retry would not improve either."""
DAMAGED_START = "the model from which it starts is damaged"
"""Part of the detail of an attempt that trips at its first step over such a model; no retry helps it."""


@dataclass(frozen=True)
class Trip:
    """A guard that ended an attempt. `limit` is None where any finite value is allowed, `value` where none is known."""

    guard: Guard | EndReason
    value: float | None
    limit: float | None


def check_step(loss: float, grad_norm: float | None, grad_norm_limit: float) -> Trip | None:
    """The first guard that refuses the step, or None.

    Args:
        loss: mean nats per loss token of the step.
        grad_norm: L2 norm of the gradient before clipping; None when it was not measured, which no guard checks.
        grad_norm_limit: the largest norm that passes.
    """
    if not math.isfinite(loss):
        return Trip("nonfinite_loss", loss, None)
    if grad_norm is None:
        return None
    if not math.isfinite(grad_norm):
        return Trip("nonfinite_grad_norm", grad_norm, None)
    if grad_norm > grad_norm_limit:
        return Trip("grad_norm", grad_norm, grad_norm_limit)
    return None


SPIKE_REFERENCE = 64
"""Steps before the newest ones that say what is usual."""
SPIKE_NEWEST = 5
"""Newest steps, this one included, whose median is compared: one odd batch is no spike."""
SPIKE_FLOOR = 0.05
"""Least standard deviation in nats: a loss that hardly varies rises by this much without anything being wrong."""
DEVIATIONS = 1.4826
"""Standard deviations in a median absolute deviation, of a normal distribution."""
KEPT_LOSSES = SPIKE_REFERENCE + SPIKE_NEWEST - 1


def spike_limit(losses: Sequence[float], factor: float) -> float | None:
    """The loss above which a step is part of a spike; None while too few steps are known, or for factor 0.

    It is `median + factor * max(1.4826 * MAD, 0.05)` of the 64 losses before the newest four.

    Args:
        losses: mean nats per loss token of the applied steps, oldest first.
        factor: allowed rise in robust standard deviations.
    """
    if factor == 0:
        return None
    reference = losses[-KEPT_LOSSES : len(losses) - SPIKE_NEWEST + 1]
    if len(reference) < SPIKE_REFERENCE:
        return None
    usual = median(reference)
    spread = median(abs(loss - usual) for loss in reference)
    return usual + factor * max(DEVIATIONS * spread, SPIKE_FLOOR)


def check_spike(losses: Sequence[float], loss: float, factor: float) -> Trip | None:
    """The guard that refuses a step with this loss: the median of it and the four before exceeds the limit."""
    limit = spike_limit(losses, factor)
    if limit is None:
        return None
    newest = median([*losses[1 - SPIKE_NEWEST :], loss])
    return Trip("loss_spike", newest, limit) if newest > limit else None


IMPROVEMENT = 0.001
"""Least fall of a loss, in nats, that counts as an improvement."""


@dataclass
class Improvement:
    """The best loss so far and its step, for the guard `no_improvement`.

    A training loss is smoothed over the newest `smoothing_steps`; a loss on held-out data is used as it is.
    """

    best: float | None = None
    best_step: int = 0
    recent: list[float] = field(default_factory=list)

    def note(self, step: int, loss: float, smoothing: int = 1) -> None:
        """Take the loss of a step into account."""
        self.recent = [*self.recent, loss][-smoothing:]
        if len(self.recent) < smoothing:
            return
        smoothed = sum(self.recent) / smoothing
        if self.best is None or smoothed < self.best - IMPROVEMENT:
            self.best, self.best_step = smoothed, step

    def check(self, step: int, window: int) -> Trip | None:
        """The guard that ends the training after this step: the best loss is older than `window` steps."""
        since = step - self.best_step
        return Trip(NO_IMPROVEMENT, since, window) if self.best is not None and since >= window else None


def smoothing_steps(window: int) -> int:
    """Steps over which a training loss is smoothed: a tenth of the window, at least 1 and at most 100."""
    return min(100, max(1, window // 10))


def window_steps(window: float, total_steps: int) -> int:
    """Steps of a window; a value below 1 is a share of all steps, rounded up."""
    return max(1, math.ceil(window * total_steps) if window < 1 else int(window))
