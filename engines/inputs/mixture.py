"""How much of each source a mixture has: its weights, the text that there is, and how often it may be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FULL = 1e-9
"""A relative difference up to which a target is all of a source."""


@dataclass(frozen=True)
class SourceShare:
    """What a recipe wants of a source.

    Attributes:
        name: the source.
        weight: its share before normalization; None if it is that of its size.
        epochs: how often its documents may be repeated in the train split.
    """

    name: str
    weight: float | None
    epochs: float


def shares_of(sources: Sequence[SourceShare], sizes: Sequence[int], temperature: float) -> list[float]:
    """The share of each source, with a sum of 1: its weight, or its size, to the power of 1 / temperature.

    Args:
        sources: the sources.
        sizes: the bytes of each; a source without text has no share.
        temperature: above 0; 1 leaves weights as they are.
    """
    weights = [
        0.0 if size == 0 else float(size if one.weight is None else one.weight) ** (1 / temperature)
        for one, size in zip(sources, sizes, strict=True)
    ]
    total = sum(weights)
    return [weight / total for weight in weights] if total else weights


def targets_of(shares: Sequence[float], sizes: Sequence[int], epochs: Sequence[float], limit: float) -> list[float]:
    """The bytes of each source in a split: as many as possible in exactly these shares.

    The source that has the least text for its share decides the total: `epochs[i] * sizes[i]` bytes of it.

    Args:
        shares: of the sources, with a sum of 1.
        sizes: bytes of each source in the split; a source without any is left out, and the others share its part.
        epochs: how often each may be repeated.
        limit: most bytes in total.
    """
    there = [number for number, size in enumerate(sizes) if size and shares[number]]
    whole = sum(shares[number] for number in there)
    if not there:
        return [0.0] * len(sizes)
    total = min([limit, *(epochs[number] * sizes[number] * whole / shares[number] for number in there)])
    targets = [0.0] * len(sizes)
    for number in there:
        targets[number] = total * shares[number] / whole
    return targets
