"""A metric over steps or time: append-only numbers with a min/max pyramid, so that a chart costs O(columns).

Sixteen values are summarized by their minimum and maximum, and sixteen of these again. A column of a chart reads at
most a few dozen numbers, however long the run is, and misses no spike. Non-finite values (NaN and the infinities) do
not count in extents: they are gaps with a mark. A value that could not be measured (`None`) is a gap without a mark.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from cockpit.columns.column import Column, in_memory, span

FAN = 16
_INF = math.inf

Extent: TypeAlias = "tuple[float, float, bool] | None"
"""Smallest and largest finite value (both NaN without finite values), and whether there is a non-finite value; None: no
value."""


KEPT_ENVELOPES = 4
"""Envelopes whose columns to the left are kept: the one on the screen, and those of a zoom or another size."""


class _Envelope(NamedTuple):
    """The columns of an envelope; the first `complete` ones cannot change, and the next point is at `start`."""

    columns: list[Extent]
    complete: int
    start: int


class Series:
    """Points (x, y) in order of x. `x` and `y` may be shared, append-only arrays that the caller fills.

    Args:
        x: positions, finite.
        y: values; NaN and infinities are kept.
        absent: indexes at which y was not measured (the NaN there has no meaning).
    """

    def __init__(self, x: Column | None = None, y: Column | None = None, absent: array[int] | None = None) -> None:
        self._x_in: Column = array("d") if x is None else x
        self._y_in: Column = array("d") if y is None else y
        self._absent_in: array[int] = array("q") if absent is None else absent
        self._x, self._y, self._absent = self._x_in, self._y_in, self._absent_in
        self._sorted_copy = False
        self._checked = 0
        self._reset_index()
        self._smoothed: dict[float, tuple[Series, _Average]] = {}

    def append(self, x: float, y: float | None) -> None:
        """Add one point; a point whose position is not finite is ignored, because it cannot be drawn."""
        if not math.isfinite(x):
            return
        if y is None:
            self._absent_in.append(len(self._y_in))
            y = math.nan
        self._x_in.append(x)
        self._y_in.append(y)

    def append_value(self, y: float | None) -> None:
        """Add the value of the next position, which the caller has already added to the shared positions."""
        if y is None:
            self._absent_in.append(len(self._y_in))
            y = math.nan
        self._y_in.append(y)

    def extend(self, points: Iterable[tuple[float, float | None]]) -> None:
        """Append many points."""
        for x, y in points:
            self.append(x, y)

    def copy(self) -> Series:
        """An independent series with the same points."""
        return Series(in_memory(self._x_in), in_memory(self._y_in), self._absent_in[:])

    @property
    def given(self) -> tuple[Column, Column, array[int]]:
        """Positions, values and indexes of absent values, as they were added."""
        return self._x_in, self._y_in, self._absent_in

    def __len__(self) -> int:
        return min(len(self._x_in), len(self._y_in))

    @property
    def x(self) -> Column:
        """Positions, in order."""
        self._settle()
        return self._x

    @property
    def y(self) -> Column:
        """Values at those positions; NaN where non-finite or absent."""
        self._settle()
        return self._y

    @property
    def bad(self) -> array[int]:
        """Indexes of non-finite values that were measured."""
        self._settle()
        return self._bad

    @property
    def absent(self) -> array[int]:
        """Indexes of values that were not measured."""
        self._settle()
        return self._absent

    def is_absent(self, index: int) -> bool:
        """Whether the value at `index` was not measured."""
        absent = self.absent
        at = bisect_left(absent, index)
        return at < len(absent) and absent[at] == index

    def last(self, upto: int | None = None) -> float | None:
        """The newest measured value before index `upto` (NaN is a value), or None."""
        y = self.y
        for index in range(min(len(y), len(self)) - 1 if upto is None else min(upto, len(y)) - 1, -1, -1):
            if not self.is_absent(index):
                return y[index]
        return None

    def at(self, x: float) -> tuple[float, float] | None:
        """The measured point at `x`, or the nearest one before it."""
        index = bisect_right(self.x, x, 0, len(self)) - 1
        while index >= 0 and self.is_absent(index):
            index -= 1
        return None if index < 0 else (self._x[index], self._y[index])

    def extent(self, x0: float = -_INF, x1: float = _INF, upto: int | None = None) -> tuple[float, float] | None:
        """Smallest and largest finite y with x0 ≤ x ≤ x1, or None."""
        x = self.x
        n = self._limit(upto)
        lo, hi = self._range(bisect_left(x, x0, 0, n), bisect_right(x, x1, 0, n))
        return None if lo > hi else (lo, hi)

    def envelope(self, x0: float, x1: float, columns: int, upto: int | None = None) -> list[Extent]:
        """The extents of `columns` equal parts of [x0, x1]; the last part includes x1.

        Args:
            x0: left edge.
            x1: right edge, larger than x0.
            columns: number of parts.
            upto: use only the first `upto` points.
        """
        x = self.x
        n = self._limit(upto)
        width = (x1 - x0) / columns
        key = (x0, x1, columns)
        whole = n == len(self)
        known = self._envelopes.get(key) if whole else None
        if known is not None and known.complete:
            result, start = known.columns[: known.complete], known.start
        else:
            result, start = [], bisect_left(x, x0, 0, n)
        complete, complete_stop = len(result), start
        for column in range(len(result), columns):
            if column == columns - 1:
                stop = bisect_right(x, x1, start, n)
            else:
                stop = bisect_left(x, x0 + (column + 1) * width, start, n)
            if stop < n:  # there are points to the right of it: later ones are, too
                complete, complete_stop = column + 1, stop
            result.append(self._column(start, stop))
            start = stop
        if whole:
            if key not in self._envelopes and len(self._envelopes) >= KEPT_ENVELOPES:
                self._envelopes.clear()
            self._envelopes[key] = _Envelope(result, complete, complete_stop)
        return list(result)

    def ema(self, alpha: float) -> Series:
        """The debiased exponential moving average, s ← alpha·s + (1-alpha)·y divided by 1-alphaⁿ (as Adam's moments).

        It is computed only for new points. A non-finite value does not change the average and is a gap in it.
        """
        x, y = self.x, self.y  # settled first: sorting forgets the averages
        if alpha not in self._smoothed:
            # It is drawn and rounded: 32 bits are enough.
            self._smoothed[alpha] = (Series(x, array("f"), self._absent), _Average(alpha))
        smooth, average = self._smoothed[alpha]
        known = len(smooth._y_in)
        if known < self._limit(None):
            smooth._y_in.extend(average.add_all(span(y, known, self._limit(None))))
        return smooth

    def _limit(self, upto: int | None) -> int:
        n = min(len(self._x), len(self._y))
        return n if upto is None else max(0, min(n, upto))

    def _column(self, start: int, stop: int) -> Extent:
        if start >= stop:
            return None
        bad = self._bad
        marked = bool(bad) and bisect_left(bad, start) < bisect_left(bad, stop)
        lo, hi = self._range(start, stop)
        if lo > hi:
            return (math.nan, math.nan, True) if marked else None
        return (lo, hi, marked)

    def _range(self, start: int, stop: int) -> tuple[float, float]:
        """Extent of y[start:stop]; (inf, -inf) without finite values."""
        lo, hi = _INF, -_INF
        lows: Sequence[float] = self._y
        highs: Sequence[float] = self._y
        level = 0
        while start < stop:
            parents = len(self._low[level]) if level < len(self._low) else 0
            first, last = -(-start // FAN), min(stop // FAN, parents)
            pieces = ((start, stop),) if first >= last else ((start, first * FAN), (last * FAN, stop))
            for a, b in pieces:
                if a < b:
                    low, high = _extent(lows[a:b]) if level == 0 else (min(lows[a:b]), max(highs[a:b]))
                    lo, hi = min(lo, low), max(hi, high)
            if first >= last:
                break
            lows, highs = self._low[level], self._high[level]
            start, stop, level = first, last, level + 1
        return lo, hi

    def _reset_index(self) -> None:
        self._envelopes: dict[tuple[float, float, int], _Envelope] = {}
        self._low: list[array[float]] = []
        self._high: list[array[float]] = []
        self._bad: array[int] = array("q")
        self._seen = 0

    def _settle(self) -> None:
        """Update order, gaps and the pyramid up to the newest point."""
        n = len(self)
        if n == self._checked:
            return
        x = self._x_in
        last = x[self._checked - 1] if self._checked else -_INF
        ordered = True
        for value in x[self._checked : n]:
            if value < last:
                ordered = False
                break
            last = value
        if self._sorted_copy or not ordered:
            self._sort(n)
        self._checked = n
        self._index(n)

    def _sort(self, n: int) -> None:
        """Use a sorted copy from now on, because positions decreased (a clock was set)."""
        order = sorted(range(n), key=self._x_in.__getitem__)
        absent = set(self._absent_in)
        self._x = array("d", (self._x_in[i] for i in order))
        self._y = array("d", (self._y_in[i] for i in order))
        self._absent = array("q", (new for new, old in enumerate(order) if old in absent))
        self._sorted_copy = True
        self._smoothed.clear()
        self._reset_index()

    def _index(self, n: int) -> None:
        y, absent = self._y, self._absent
        if self._seen < n:
            fresh = span(y, self._seen, n)  # no copy: the first time it is everything
            total = sum(fresh)
            if total - total != 0.0:  # a non-finite value is among them (or the sum overflowed)
                skip = set(absent[bisect_left(absent, self._seen) :])
                bad = (i for i, v in enumerate(fresh, self._seen) if not math.isfinite(v) and i not in skip)
                self._bad.extend(bad)
        self._seen = n
        lows: Sequence[float] = y
        highs: Sequence[float] = y
        size, level = n, 0
        while size >= FAN:
            if level == len(self._low):
                self._low.append(array("d"))
                self._high.append(array("d"))
            low, high = self._low[level], self._high[level]
            for block in range(len(low), size // FAN):
                at = block * FAN
                if level == 0:
                    a, b = _extent(lows[at : at + FAN])
                else:
                    a, b = min(lows[at : at + FAN]), max(highs[at : at + FAN])
                low.append(a)
                high.append(b)
            lows, highs, size, level = low, high, len(low), level + 1


class _Average:
    """The state of one debiased exponential moving average."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.sum = 0.0
        self.weight = 0.0

    def add_all(self, values: Iterable[float]) -> array[float]:
        """The average after each of these values; a loop of its own, because it passes over a million of them."""
        alpha, beta, total, weight = self.alpha, 1.0 - self.alpha, self.sum, self.weight
        found: array[float] = array("f")
        add = found.append
        for value in values:
            if value - value == 0.0:  # finite
                total = alpha * total + beta * value
                weight = alpha * weight + beta
                add(total / weight)
            else:
                add(math.nan)
        self.sum, self.weight = total, weight
        return found


def _extent(values: Sequence[float]) -> tuple[float, float]:
    total = sum(values)
    if total - total == 0.0:
        return (min(values), max(values)) if values else (_INF, -_INF)
    finite = [v for v in values if math.isfinite(v)]
    return (min(finite), max(finite)) if finite else (_INF, -_INF)


def joined(parts: Iterable[Series]) -> Series:
    """One series with the points of several, in order of x (equal positions in the order of the parts)."""
    whole = Series()
    for part in parts:
        absent = set(part.absent)
        for index, (x, y) in enumerate(zip(part.x, part.y, strict=False)):
            whole.append(x, None if index in absent else y)
    return whole
