"""Shapes of the tried models, and the floating-point operations of a training step.

MFU is model FLOP per second over the published dense BF16 rate of an H100 or H200 SXM. Per real token of a row of T
tokens, forward and backward, attention counted for the causal half, nothing for recomputation:

    all weights    6 N + 6 L W T
    LoRA           4 N + 6 A + 6 L W T     (a frozen matrix has no gradient of its own)

N: entries of the multiplied matrices, the head's included and the embedding's not; A: those of the adapter; L layers of
W = heads x head width. Padding is never counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

PEAK = 989.4e12
"""FLOP per second: NVIDIA's data sheets of H100 SXM and H200 SXM, BF16, dense."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped queries and SwiGLU, by the names of its configuration."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def fields(self, *, vocabulary: bool = True) -> dict[str, Any]:
        found = asdict(self)
        if not vocabulary:
            del found["vocab_size"]
        return found

    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of a layer: inputs and outputs."""
        width, inner = self.hidden_size, self.intermediate_size
        narrow = width // self.num_attention_heads * self.num_key_value_heads
        sides = [(width, width), (width, narrow), (width, narrow), (width, width)]
        return dict(zip(PROJECTIONS, [*sides, (width, inner), (width, inner), (inner, width)], strict=True))

    @property
    def multiplied(self) -> int:
        layer = sum(one * other for one, other in self.matrices().values())
        return self.num_hidden_layers * layer + self.vocab_size * self.hidden_size

    @property
    def adapter(self) -> int:
        return self.num_hidden_layers * RANK * sum(one + other for one, other in self.matrices().values())

    def flop(self, lengths: Iterable[int], *, lora: bool) -> float:
        """Of one forward and backward pass over rows of these lengths."""
        dense = 4 * self.multiplied + 6 * self.adapter if lora else 6 * self.multiplied
        attention = 6 * self.num_hidden_layers * self.hidden_size
        return float(sum(dense * length + attention * length * length for length in lengths))


@dataclass(frozen=True)
class Tuning:
    """A LoRA training. Steps up to `warm` are not counted; those after `counted` are profiled."""

    shape: Shape
    low: int = 512
    high: int = 2048
    batch: int = 2
    accumulation: int = 4
    warm: int = 4
    counted: int = 20
    steps: int = 24

    @property
    def window(self) -> int:
        return self.batch * self.accumulation


@dataclass(frozen=True)
class Pretraining:
    """A training from scratch on full windows."""

    shape: Shape
    length: int = 2048
    batch: int = 16
    accumulation: int = 1
    warm: int = 6
    counted: int = 30
    steps: int = 34

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.length * self.batch * self.accumulation


SMALL = Shape(4096, 64, 160, 2, 4, 2)
FULL_TUNING = {
    "7b": Tuning(Shape(152_064, 3584, 18_944, 28, 28, 4)),
    "14b": Tuning(Shape(152_064, 5120, 13_824, 48, 40, 8), counted=12, steps=12),
}
FULL_PRETRAINING = {
    "150m": Pretraining(Shape(32_000, 768, 3072, 14, 12, 4)),
    "1500m": Pretraining(Shape(32_000, 2048, 7680, 24, 16, 8), batch=4, accumulation=2, counted=18, steps=21),
}
TINY_TUNING = {
    name: Tuning(SMALL, low=40, high=128, accumulation=2, warm=2, counted=5, steps=8) for name in FULL_TUNING
}
TINY_PRETRAINING = {
    name: Pretraining(Shape(1000, 64, 160, 2, 4, 2), length=64, batch=2, warm=2, counted=5, steps=8)
    for name in FULL_PRETRAINING
}


def tuning(name: str, *, smoke: bool) -> Tuning:
    return (TINY_TUNING if smoke else FULL_TUNING)[name]


def pretraining(name: str, *, smoke: bool) -> Pretraining:
    return (TINY_PRETRAINING if smoke else FULL_PRETRAINING)[name]
