"""What a training computes and how fast devices are: model FLOPs utilization (MFU), and times that follow from it.

The operations of a token are those of `Sizes.training_operations`. The peaks are the vendors' for dense products in
bfloat16, which are never reached: good trainings have 40 to 50 % of them.
"""

from __future__ import annotations

from collections.abc import Mapping

CONVENTION = "6 N + 12 L H Q T operations for each token, attention not halved for its mask"
"""The convention of `Sizes.training_operations`, which is that of published figures."""
PEAKS: Mapping[str, float] = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "GB10": 125e12}
"""Operations per second by a part of the device's name, in bfloat16 without sparsity."""
PLANNED_DEVICE, PLANNED_SHARE = "H100", 0.4
"""What a plan assumes: a device, and the share of its peak that a training has."""


def peak_of(device_name: str) -> float | None:
    """The peak of a device in operations per second; None for one that is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device_name), None)


def planned_seconds(operations: float) -> float:
    """An estimate of the time that a training takes on `PLANNED_DEVICE`."""
    return operations / (PEAKS[PLANNED_DEVICE] * PLANNED_SHARE)
