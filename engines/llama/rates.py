"""Quantization speed of this machine for each tensor type, measured before the work, and progress computed from it.

Speeds differ by a factor of a thousand (Q8_0: hundreds of millions of values per second; IQ2_XS: a tenth of a million),
so progress by the share of values done would show minutes where hours are left.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from engines.llama.quantizer import Quantizer
from recipes import quantities

COLUMNS = 1024
MIN_S = 0.03
MAX_ROWS = 8192
PLAIN_RATES = {"F32": 4e8, "F16": 3e8, "BF16": 2e8}
"""Values per second of types that are only copied or rounded; memory and disk limit them, and their share is small."""


def measure_rates(
    quantizer: Quantizer, type_names: Iterable[str], threads: int, *, importance: bool = False
) -> dict[str, float]:
    """Values per second of each type, from random rows; the number of rows grows until the time is measurable.

    Args:
        quantizer: the quantizer that will do the work.
        type_names: names of `TYPES`; plain ones get a fixed rate.
        threads: its CPU threads; the first trial has four rows per thread.
        importance: whether the work uses an importance matrix.
    """
    rng = np.random.default_rng(5)
    weights = rng.gamma(1.0, 1.0, COLUMNS).astype(np.float32) if importance else None
    rates: dict[str, float] = {}
    for name in type_names:
        if name in PLAIN_RATES:
            rates[name] = PLAIN_RATES[name]
            continue
        count = 4 * threads
        # The first call builds tables for some types; later calls reuse them.
        quantizer.quantize(name, np.zeros((threads, COLUMNS), np.float32) + np.float32(0.5), weights)
        while True:
            rows = rng.standard_normal((count, COLUMNS), np.float32)
            began = time.perf_counter()
            quantizer.quantize(name, rows, weights)
            taken = time.perf_counter() - began
            if taken >= MIN_S or count >= MAX_ROWS:
                break
            count = min(MAX_ROWS, max(2 * count, int(count * 1.5 * MIN_S / max(taken, 1e-6))))
        rates[name] = count * COLUMNS / taken
    return rates


@dataclass
class Work:
    """Tensors to write in order, as (type, values), and the progress in seconds by the measured rates.

    Attributes:
        parts: type and number of values of each tensor.
        rates: values per second by type.
        done_s: seconds of work done.
    """

    parts: list[tuple[str, int]]
    rates: Mapping[str, float]
    done_s: float = 0.0
    _index: int = 0
    _inside: int = 0
    total_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Compute the total."""
        self.total_s = sum(values / self.rates[kind] for kind, values in self.parts)

    def advance(self, values: int) -> float:
        """Count written values; returns `done_s`."""
        while values and self._index < len(self.parts):
            kind, size = self.parts[self._index]
            step = min(values, size - self._inside)
            self.done_s += step / self.rates[kind]
            self._inside += step
            values -= step
            if self._inside == size:
                self._index, self._inside = self._index + 1, 0
        if self._index == len(self.parts):
            self.done_s = self.total_s
        return self.done_s


def rates_note(rates: Mapping[str, float]) -> str:
    """The measured rates as text, slowest first."""
    slow = sorted((rate, name) for name, rate in rates.items() if name not in PLAIN_RATES)
    return ", ".join(f"{name} {quantities.rate(rate, 'values')}" for rate, name in slow)
