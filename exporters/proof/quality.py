"""Traffic lights for measured files: compares their KL with the usual KL of their type. Needs neither torch nor
numpy."""

from __future__ import annotations

from recipes.file_types import FILE_TYPES

YELLOW, RED = 1.0, 3.0
"""Multiples of the usual KL: above the first a quantized file needs inspection, above the second its type promises
more."""


def light_of(file_type: str, mean_kl: float) -> str | None:
    """green, yellow or red by the type's published KL; None for a type without a published figure."""
    row = FILE_TYPES.get(file_type)
    if row is None or row.usual_kl is None:
        return None
    if not mean_kl <= row.usual_kl * RED:
        return "red"
    return "green" if mean_kl <= row.usual_kl * YELLOW else "yellow"
