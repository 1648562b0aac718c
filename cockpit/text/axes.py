"""Scales of charts: domains that change rarely, and ticks at round numbers. Pure functions of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

FILL = 0.6
"""A domain is kept while the data fits in it and fills more than this share of it."""
HEADROOM = 0.06
_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_STEP_HEADS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_SPANS_S = (
    *(60, 80, 120, 160, 240, 300, 400, 600, 900, 1200, 1800, 2700, 3600),
    *(5400, 7200, 10_800, 14_400, 21_600, 28_800, 43_200, 57_600, 86_400),
)
_TICKS_S = (15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400)


@dataclass(frozen=True)
class Domain:
    """A range of values on a linear or a logarithmic axis."""

    lo: float
    hi: float
    log: bool = False

    def share(self, value: float) -> float:
        """The position of a value: 0 at the low end, 1 at the high end, clamped."""
        if self.log:
            if value <= self.lo:
                return 0.0
            share = (math.log10(value) - math.log10(self.lo)) / (math.log10(self.hi) - math.log10(self.lo))
        else:
            share = (value - self.lo) / (self.hi - self.lo)
        return min(1.0, max(0.0, share))

    def contains(self, lo: float, hi: float) -> bool:
        """Whether both values are inside."""
        return self.lo <= lo and hi <= self.hi


def fitted(lo: float, hi: float, *, log: bool = False) -> Domain:
    """A domain for data from lo to hi, with some headroom; one around a single value, and from 0 for zeros."""
    if log:
        hi = hi if hi > 0 else 1.0
        lo = lo if lo > 0 else hi / 1e4
        lo = min(max(lo, 1e-270), 1e300)  # room for the ratio, which is at most 1e31
        hi = max(lo, hi)
        ratio = max(1.05, hi**HEADROOM / lo**HEADROOM)
        return Domain(lo / ratio, min(hi * ratio, 1e308), log=True)
    span = hi - lo
    if not math.isfinite(span) or max(-lo, hi) > 1e307:  # no room for headroom
        return Domain(-1e308, 1e308)
    if lo == hi == 0.0:
        return Domain(0.0, 1.0)
    if span <= abs(hi) * 1e-9:
        span = abs(hi) * 0.2
        lo, hi = lo - span / 2, hi + span / 2
    pad = span * HEADROOM
    return Domain(0.0 if 0 <= lo < span * 0.25 else lo - pad, hi + pad)


def kept(domain: Domain | None, lo: float, hi: float, *, log: bool = False) -> Domain:
    """The old domain while it suits the data, else a new one: a new domain repaints the whole chart."""
    new = fitted(lo, hi, log=log)
    if domain is None or domain.log != log or not domain.contains(max(lo, domain.lo) if log and lo <= 0 else lo, hi):
        return new
    filled = new.share(domain.hi), new.share(domain.lo)
    if log:
        used = (math.log10(new.hi) - math.log10(new.lo)) / (math.log10(domain.hi) - math.log10(domain.lo))
    else:
        used = (new.hi - new.lo) / (domain.hi - domain.lo)
    return domain if used > FILL and filled else new


def ticks(domain: Domain, most: int) -> tuple[list[float], float]:
    """Round values inside the domain, at most `most`, and the distance between them (0 on a logarithmic axis)."""
    if most < 1:
        return [], 0.0
    if domain.log:
        return _log_ticks(domain, most), 0.0
    span = domain.hi - domain.lo
    step = _round_up(span / max(1, most))
    for _ in range(8):
        first = math.ceil(domain.lo / step - 1e-9)
        last = math.floor(domain.hi / step + 1e-9)
        if last - first + 1 <= most:
            return [n * step for n in range(first, last + 1)], step
        step = _round_up(step * 1.01)
    return [], step


def _log_ticks(domain: Domain, most: int) -> list[float]:
    low, high = math.floor(math.log10(domain.lo)), math.ceil(math.log10(domain.hi))
    for heads in ((1, 2, 5), (1, 3), (1,)):
        values = [head * 10.0**power for power in range(max(low, -300), min(high, 300) + 1) for head in heads]
        inside = [value for value in values if domain.lo <= value <= domain.hi]
        if len(inside) <= most:
            return inside
    decades = [
        10.0**power for power in range(max(low, -300), min(high, 300) + 1) if domain.lo <= 10.0**power <= domain.hi
    ]
    return decades[:: max(1, math.ceil(len(decades) / most))]


def _round_up(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below the value."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    for head in _ROUND:
        if head * power >= value * (1 - 1e-9):
            return head * power
    return 10.0 * power


def step_domain(total: int | None, reached: float, *, plan: bool = False, ended: bool = False) -> tuple[float, float]:
    """The x axis of steps: fitted to the steps that exist, or with `plan` to the planned total.

    A stage that trains gets the next of a few round numbers, so that the axis changes rarely and at least three
    quarters of it are filled; one that has ended gets its last step.
    """
    if plan and total and total >= reached:
        return 0.0, float(total)
    if ended or (total is not None and reached == total):
        return 0.0, max(1.0, reached)
    right = _next_of(_STEP_HEADS, max(10.0, reached))
    return 0.0, min(right, float(total)) if total and total >= reached else right


def time_domain(start: float, reached: float, *, ended: bool = False) -> tuple[float, float]:
    """The x axis of seconds: from the start, over the next round duration, so that it changes rarely."""
    length = max(1.0, reached - start)
    if ended:
        return start, start + length
    for span in _SPANS_S:
        if length <= span:
            return start, start + span
    return start, start + 86_400 * _next_of(_STEP_HEADS, length / 86_400)


def _next_of(heads: tuple[float, ...], value: float) -> float:
    """The smallest of the heads times a power of ten that is not below the value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(head * power for head in heads if head * power >= value * (1 - 1e-12))


def time_ticks(span_s: float, most: int) -> list[float]:
    """Round offsets in seconds within a span."""
    for step in (*_TICKS_S, 172_800, 345_600, 864_000, 8_640_000):
        if span_s / step + 1 <= most:
            return [n * float(step) for n in range(int(span_s // step) + 1)]
    return [0.0]
