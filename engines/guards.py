"""Guards: checks that refuse a step before the optimizer applies it, as pure functions of the step's measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from engines.words import EndReason

Guard = Literal["nonfinite_loss", "nonfinite_grad_norm", "grad_norm"]


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
