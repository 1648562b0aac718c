"""The guards of a training that look at more than one step, and their state, which checkpoints keep."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from engines.guards import (
    KEPT_LOSSES,
    NO_IMPROVEMENT,
    Improvement,
    Trip,
    check_spike,
    check_step,
    smoothing_steps,
    spike_limit,
    window_steps,
)
from recipes import quantities
from recipes.stages.fields import ModelGuards


class Watch:
    """Judges the steps of one attempt.

    Attributes:
        suspect: the newest loss is above the limit of `loss_spike`; a spike may have begun.
        improvement: the best loss of `no_improvement_on` and its step.
    """

    def __init__(self, guards: ModelGuards) -> None:
        self.guards = guards
        self.suspect = False
        self.improvement = Improvement()
        self._losses: list[float] = []
        self._began_s = time.monotonic()

    def before_step(self, loss: float, grad_norm: float | None) -> Trip | None:
        """The first guard that refuses to apply a step, or None."""
        trip = check_step(loss, grad_norm, self.guards.grad_norm)
        return trip or check_spike(self._losses, loss, self.guards.loss_spike)

    def note_step(self, step: int, loss: float, total_steps: int) -> None:
        """Take the loss of an applied step into account."""
        limit = spike_limit(self._losses, self.guards.loss_spike)
        self.suspect = limit is not None and loss > limit
        self._losses = [*self._losses, loss][-KEPT_LOSSES:]
        if self.guards.no_improvement is not None and self.guards.no_improvement_on == "loss":
            window = window_steps(self.guards.no_improvement, total_steps)
            self.improvement.note(step, loss, smoothing_steps(window))

    def note_evaluation(self, step: int, loss: float) -> None:
        """Take the loss of an evaluation into account."""
        if self.guards.no_improvement_on == "eval_loss":
            self.improvement.note(step, loss)

    def after_step(self, step: int, total_steps: int) -> Trip | None:
        """The guard that ends the attempt after this step, or None. The last step ends it anyway."""
        if step >= total_steps:
            return None
        if self.guards.no_improvement is not None:
            trip = self.improvement.check(step, window_steps(self.guards.no_improvement, total_steps))
            if trip is not None:
                self.improvement.best_step = step  # a resume has a whole window again
                return trip
        used_s = time.monotonic() - self._began_s
        limit_s = self.guards.wall_clock_s
        return Trip("wall_clock", used_s, limit_s) if limit_s is not None and used_s >= limit_s else None

    def no_improvement_words(self, step: int, total_steps: int) -> str:
        """Why `no_improvement` ended the training after this step."""
        window = window_steps(self.guards.no_improvement or 1.0, total_steps)
        best = quantities.number(self.improvement.best or 0.0, 6)
        return (
            f"{NO_IMPROVEMENT} at step {step}: {self.guards.no_improvement_on} has not improved on {best} for"
            f" {window} steps"
        )

    def saved(self) -> dict[str, Any]:
        """The state for a checkpoint's `position`."""
        best = self.improvement
        return {
            "guard_losses": self._losses,
            "improvement": {"best": best.best, "best_step": best.best_step, "recent": best.recent},
        }

    def restore(self, position: Mapping[str, Any]) -> None:
        """Continue with the state of a checkpoint; one of an older version has none."""
        self._losses = [float(loss) for loss in position.get("guard_losses") or []][-KEPT_LOSSES:]
        best = position.get("improvement")
        if best:
            recent = [float(loss) for loss in best["recent"]]
            self.improvement = Improvement(best["best"], int(best["best_step"]), recent)


class EarlyStopping:
    """Counts evaluations in a row without an improvement, as transformers' EarlyStoppingCallback does.

    Args:
        patience: evaluations without an improvement after which the training ends; None: it does not end early.
        threshold: change of the metric that must be exceeded.
        rises: a greater value is better.

    Attributes:
        best: the best value so far.
        best_step: its step.
        failures: evaluations in a row that did not improve on it.
    """

    def __init__(self, patience: int | None, threshold: float, *, rises: bool = False) -> None:
        self._patience, self._threshold, self._sign = patience, threshold, -1.0 if rises else 1.0
        self.best: float | None = None
        self.best_step = 0
        self.failures = 0

    def note(self, step: int, value: float) -> bool:
        """Take an evaluation into account; True if the training ends here."""
        gained = math.inf if self.best is None else self._sign * (self.best - value)
        self.failures = 0 if gained > self._threshold else self.failures + 1
        if self.best is None or gained > 0:
            self.best, self.best_step = value, step
        return self._patience is not None and self.failures >= self._patience

    def saved(self) -> dict[str, Any]:
        """The state for a checkpoint's `position`."""
        return {"early_stopping": {"best": self.best, "best_step": self.best_step, "failures": self.failures}}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Continue with the state of a checkpoint; one of an older version has none."""
        state = position.get("early_stopping")
        if state:
            self.best, self.best_step, self.failures = state["best"], int(state["best_step"]), int(state["failures"])
