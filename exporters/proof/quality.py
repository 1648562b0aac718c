"""Traffic lights for measured files: against what quantizing to their type usually costs. Needs neither torch nor
numpy."""

from __future__ import annotations

from recipes.file_types import FILE_TYPES

YELLOW, RED = 1.0, 3.0
"""Multiples of the usual KL at which a quantized file is worth a look, and at which it is not what its type should
be."""


def light_of(file_type: str, mean_kl: float) -> str | None:
    """green, yellow or red against what the type costs elsewhere; None for a type without a published figure."""
    row = FILE_TYPES.get(file_type)
    if row is None or row.usual_kl is None:
        return None
    if not mean_kl <= row.usual_kl * RED:
        return "red"
    return "green" if mean_kl <= row.usual_kl * YELLOW else "yellow"
