"""The scale of the loss in a training that computes in float16.

Gradients below 6e-8 are 0 in float16. So the loss is multiplied by a scale before the backward pass, and gradients are
divided by it before anything reads them (torch.amp.GradScaler). A gradient that overflows halves the scale, and the
optimizer leaves this step out; after 2,000 steps without one the scale is doubled.
"""

from __future__ import annotations

from typing import Any

import torch

FIRST_SCALE = 2.0**16
"""GradScaler's own."""
LEAST_SCALE = 1.0
"""At this scale, a gradient that is not finite is one of the model and not of the scale."""

assert hasattr(torch.amp.GradScaler, "_found_inf_per_device"), "this version of torch is unsupported"


class LossScale:
    """The scale of a training, whose steps accelerate scales, unscales and leaves out."""

    def __init__(self, accelerator: Any) -> None:
        """Give accelerate a scaler; call it before the optimizer is prepared. On a processor it would compute in
        float32 instead."""
        self._accelerator = accelerator
        accelerator.native_amp = True
        accelerator.scaler = self._scaler = torch.amp.GradScaler(accelerator.device.type, init_scale=FIRST_SCALE)

    @property
    def value(self) -> float:
        """The present scale."""
        return float(self._scaler.get_scale())

    def of_step(self, optimizer: Any) -> dict[str, Any]:
        """`loss_scale` and `skipped` of a step, whose gradients are those of all processes and divided by the scale:
        whether the optimizer leaves it out, because one is not finite."""
        inner, scale = getattr(optimizer, "optimizer", optimizer), self.value
        found: Any = self._scaler._found_inf_per_device(inner)
        return {"loss_scale": scale, "skipped": scale > LEAST_SCALE and any(float(one) > 0 for one in found.values())}

    @staticmethod
    def count_as_step(optimizer: Any) -> None:
        """Let the schedule take a step that the optimizer has left out: the rate of a step depends on its number only.

        torch's fused optimizers leave a step out without accelerate noticing, and the others do not.
        """
        optimizer._is_overflow = False
