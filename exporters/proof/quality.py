"""Traffic lights for measured files: compares their distance from the model with published figures of their type.
Needs neither torch nor numpy.

A light judges the type, not the file: a correct file of a model that rounds badly may be red.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from recipes.file_types import FILE_TYPES

YELLOW, RED = 2.5, 6.0
"""Multiples of the published figure. In one type Llama 3 8B is 2.5 to 3.7 times as far from its model as Llama 2 7B, so
a green file is within that of Llama 3 8B, and a red one far outside."""
FEWEST_GREEN, FEWEST_YELLOW = 0.6, 0.4
"""Shares of equal most likely tokens below which no file is green, or yellow, whatever its type."""

_PUBLISHED = ((0.001355, 0.97674), (0.005452, 0.96031), (0.031273, 0.91901), (0.445132, 0.71138))
"""Mean KL and share of equal most likely tokens of Llama 3 8B in Q8_0, Q6_K, Q4_K_M and Q2_K, from llama.cpp's
tools/perplexity/README.md."""

_ORDER = ("green", "yellow", "red")


class Compared(Protocol):
    """A comparison of a file with the trained model: `exporters.proof.parity.Comparison`, which needs numpy."""

    @property
    def mean_kl(self) -> float: ...
    @property
    def top1(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def perplexity_ratio(self) -> float: ...
    def record(self) -> dict[str, Any]: ...


def light_of(file_type: str, mean_kl: float, top1: float | None = None) -> str | None:
    """green, yellow or red by the type's published figures; None for a type without.

    Args:
        file_type: its name.
        mean_kl: of the file's weights, in nats.
        top1: share of positions with the model's most likely token; None if it is unknown.
    """
    row = FILE_TYPES.get(file_type)
    if row is None or row.usual_kl is None:
        return None
    lights = [_light(mean_kl, row.usual_kl)]
    if top1 is not None:
        lights.append(_light(1 - top1, 1 - usual_top1(row.usual_kl)))
        lights.append(_ORDER[(top1 < FEWEST_GREEN) + (top1 < FEWEST_YELLOW)])
    return max(lights, key=_ORDER.index)


def _light(measured: float, usual: float) -> str:
    if not measured <= usual * RED:
        return "red"
    return "green" if measured <= usual * YELLOW else "yellow"


def usual_top1(usual_kl: float) -> float:
    """The share of equal most likely tokens that belongs to a type's published KL: between and beyond the published
    pairs, the logarithm of the other share changes linearly with that of the KL."""
    pairs = [(math.log(kl), math.log(1 - share)) for kl, share in _PUBLISHED]
    place = math.log(usual_kl)
    index = min(max(sum(kl < place for kl, _ in pairs), 1), len(pairs) - 1)
    (x0, y0), (x1, y1) = pairs[index - 1], pairs[index]
    return 1 - min(1.0, math.exp(y0 + (y1 - y0) * (place - x0) / (x1 - x0)))


def quality_record(file_type: str, comparison: Compared, weights_kl: float | None) -> dict[str, Any]:
    """A file's distance from the trained model, as plain values.

    Args:
        file_type: its name.
        comparison: of the file in llama.cpp with the trained model in transformers.
        weights_kl: mean KL, nats, that the file's weights alone cost, both in transformers; None if it is unknown.
    """
    row = FILE_TYPES.get(file_type)
    judged = comparison.mean_kl if weights_kl is None else weights_kl
    return {
        **comparison.record(),
        "weights_mean_kl": weights_kl,
        "perplexity": math.exp(min(comparison.loss, 700.0)),
        "perplexity_ratio": comparison.perplexity_ratio,
        "light": light_of(file_type, judged, comparison.top1),
        "published_mean_kl": row.usual_kl if row is not None else None,
    }
