"""What is measured of an optimizer step, before the optimizer applies it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Window:
    """The measurements of one optimizer step so far: an accumulation window of micro-batches."""

    began_s: float = 0.0
    data_wait_s: float = 0.0
    tokens: int = 0
    loss_tokens: int = 0
    rows: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    sums: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    weights: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def measure(self, name: str, values: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Add what the method measured in a micro-batch; the step's event has its mean over the window.

        Args:
            name: the series, as the method's own library names it (`rewards/margins`).
            values: the measured values, of any shape; they stay on the device.
            weight: how many things `values`, a sum, was measured of; None: each of `values` counts once.
        """
        values = values.detach()
        count = torch.tensor(float(values.numel()), device=values.device) if weight is None else weight.detach()
        self.sums.setdefault(name, []).append(values.double().sum())
        self.weights.setdefault(name, []).append(count.double().sum())

    def means(self) -> dict[str, torch.Tensor]:
        """What the method measured, as means over the window, on the device."""
        return {n: torch.stack(sums).sum() / torch.stack(self.weights[n]).sum() for n, sums in self.sums.items()}


@dataclass(frozen=True)
class Measured:
    """The measurements of a step before the optimizer applies it. `learning_rate` is the one it would use, `metrics`
    what the training's method measured, `losses` the parts of the loss by process, `asked` whether a request or a
    signal waited in any of several processes. In float16, `loss_scale` is that of the step, and `skipped` says that the
    optimizer leaves the step out, because a gradient overflowed at this scale."""

    loss: float
    grad_norm: float
    learning_rate: float
    window: Window
    metrics: dict[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    asked: bool = False
    loss_scale: float | None = None
    skipped: bool = False


def rows_in(batch: dict[str, Any]) -> int:
    """The rows of a micro-batch, which may be one sequence of several."""
    if "lengths" in batch:
        return len(batch["lengths"])
    return int(next(value for value in batch.values() if torch.is_tensor(value)).shape[0])
