"""Curves as braille dots: a pure function of spans, size and styles.

A terminal cell has two columns of four dots. A curve has, for every dot column, a lowest and a highest point; later
curves replace earlier ones in the cells that they touch, and marks are single characters on top.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from cockpit.runs.series import Series
from cockpit.text.axes import Domain

Span: TypeAlias = "tuple[float, float] | None"
"""Lowest and highest share of the height (0 bottom, 1 top) that a curve covers in one dot column."""

_LEFT = (0x01, 0x02, 0x04, 0x40)
_RIGHT = (0x08, 0x10, 0x20, 0x80)
_ASCII = {(True, True): ":", (True, False): "'", (False, True): ".", (False, False): " "}


@dataclass(frozen=True)
class Mark:
    """A character at a cell; `under` lets curves cover it."""

    column: int
    row: int
    character: str
    style: int
    under: bool = False


@dataclass(frozen=True)
class Row:
    """A row of cells: characters, and the style number of each."""

    text: str
    styles: bytes


def draw(
    curves: Sequence[tuple[int, Sequence[Span]]],
    marks: Sequence[Mark],
    width: int,
    height: int,
    *,
    ascii_only: bool = False,
) -> list[Row]:
    """The rows of a plot.

    Args:
        curves: style number and spans (two for every cell of the width), the last one on top.
        marks: single characters.
        width: cells.
        height: cells.
        ascii_only: draw with quotes, periods and colons instead of braille.
    """
    dots = [bytearray(width) for _ in range(height)]
    owner = [bytearray(width) for _ in range(height)]
    for style, spans in curves:
        _plot(spans, style, dots, owner, height)
    text = [[_character(bits, ascii_only) for bits in row] for row in dots]
    for mark in marks:
        if 0 <= mark.column < width and 0 <= mark.row < height:
            if mark.under and dots[mark.row][mark.column]:
                continue
            text[mark.row][mark.column] = mark.character
            owner[mark.row][mark.column] = mark.style
    return [Row("".join(row), bytes(styles)) for row, styles in zip(text, owner, strict=True)]


def spans_of(series: Series, x0: float, x1: float, columns: int, y: Domain, longest: float = math.inf) -> list[Span]:
    """The span of a series in each of `columns` dot columns of [x0, x1].

    A non-finite value breaks the line, and so do two points that are further apart than `longest`: between them nothing
    was measured.
    """
    x = series.x
    n = len(series)  # its positions may be another series' too, and ahead of its values
    first, last = bisect_left(x, x0, 0, n), bisect_right(x, x1, 0, n)
    if last - first > 2 * columns:
        return _dense(series, x0, x1, columns, y, n, longest)
    return _sparse(series, x0, x1, columns, y, max(0, first - 1), min(n, last + 1), longest)


def usual_distance(series: Series) -> float:
    """The median distance of neighbouring points, from at most 65 pairs; infinite for fewer than three points."""
    x = series.x
    n = len(x)
    if n < 3:
        return math.inf
    pairs = range(1, n, max(1, (n - 1) // 64))
    return median(x[at] - x[at - 1] for at in pairs)


def bad_columns(series: Series, x0: float, x1: float, columns: int) -> list[int]:
    """The columns of [x0, x1] that contain a non-finite value."""
    bad, x = series.bad, series.x
    n = len(x)
    found, at = [], bisect_left(bad, bisect_left(x, x0, 0, n))
    width = (x1 - x0) / columns
    while at < len(bad) and bad[at] < n and x[bad[at]] <= x1:
        column = min(columns - 1, int((x[bad[at]] - x0) / width))
        found.append(column)
        if column == columns - 1:
            break
        at = bisect_left(bad, max(bad[at] + 1, bisect_left(x, x0 + (column + 1) * width, 0, n)))
    return found


def column_of(value: float, x0: float, x1: float, columns: int) -> int:
    """The column of [x0, x1] that contains a position; one beyond the edge for a position outside."""
    if value < x0:
        return -1
    return columns if value > x1 else min(columns - 1, int((value - x0) / (x1 - x0) * columns))


def _dense(series: Series, x0: float, x1: float, columns: int, y: Domain, n: int, longest: float) -> list[Span]:
    spans: list[Span] = []
    before: Span = None  # the last covered column; None after a break in the line
    empty = 0
    for number, column in enumerate(series.envelope(x0, x1, columns, n)):
        if column is None:
            spans.append(None)
            empty += 1
            continue
        lo, hi, marked = column
        if math.isnan(lo):
            spans.append(None)
            before, empty = None, 0
            continue
        low, high = y.share(lo), y.share(hi)
        if marked or (empty and before is not None and _far(series, x0, x1, columns, number, empty, longest)):
            before = None
        if before is not None and empty:
            start, stop = sum(before) / 2, (low + high) / 2
            for back in range(1, empty + 1):
                share = stop + (start - stop) * back / (empty + 1)
                spans[-back] = (share, share)
            before = spans[-1]
        if before is not None:
            low, high = _touching(before, low, high)
        spans.append((low, high))
        before, empty = (None if marked else (low, high)), 0
    return spans


def _far(series: Series, x0: float, x1: float, columns: int, number: int, empty: int, longest: float) -> bool:
    """Whether the point before the `empty` columns is further than `longest` from the first one in column `number`."""
    width, x = (x1 - x0) / columns, series.x
    before = bisect_left(x, x0 + (number - empty) * width)
    after = bisect_left(x, x0 + number * width)
    return before == after and 0 < before < len(x) and x[after] - x[before - 1] > longest


def _touching(before: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    if low > before[1]:
        return before[1], high
    if high < before[0]:
        return low, before[0]
    return low, high


def _sparse(
    series: Series, x0: float, x1: float, columns: int, y: Domain, first: int, last: int, longest: float
) -> list[Span]:
    low = [2.0] * columns
    high = [-1.0] * columns
    scale = columns / (x1 - x0)
    xs, ys = series.x, series.y
    before: tuple[float, float] | None = None
    for index in range(first, last):
        value = ys[index]
        if index > first and xs[index] - xs[index - 1] > longest:
            before = None
        if not math.isfinite(value):
            if not series.is_absent(index):
                before = None
            continue
        point = ((xs[index] - x0) * scale, y.share(value))
        _segment(before or point, point, low, high)
        before = point
    return [(lo, hi) if lo <= hi else None for lo, hi in zip(low, high, strict=True)]


def _segment(a: tuple[float, float], b: tuple[float, float], low: list[float], high: list[float]) -> None:
    """Cover the columns from point a to point b, in units of columns and shares of the height."""
    columns = len(low)
    (ax, ay), (bx, by) = a, b
    start, stop = int(max(ax, 0.0)), int(min(bx, columns - 1e-9))
    if bx < 0 or ax > columns:
        return
    slope = (by - ay) / (bx - ax) if bx > ax else 0.0
    for column in range(start, min(stop, columns - 1) + 1):
        left, right = max(ax, float(column)), min(bx, column + 1.0)
        first = ay + slope * (left - ax)
        second = by if bx <= ax or right >= bx else ay + slope * (right - ax)
        low[column] = min(low[column], first, second)
        high[column] = max(high[column], first, second)
    if bx == columns:  # the right edge belongs to the last column
        low[-1], high[-1] = min(low[-1], by), max(high[-1], by)


def _plot(spans: Sequence[Span], style: int, dots: list[bytearray], owner: list[bytearray], height: int) -> None:
    rows = height * 4
    for index, span in enumerate(spans):
        if span is None:
            continue
        column, bits = index // 2, _RIGHT if index % 2 else _LEFT
        top = rows - 1 - min(rows - 1, int(span[1] * rows))
        bottom = rows - 1 - min(rows - 1, int(span[0] * rows))
        for row in range(top // 4, bottom // 4 + 1):
            mask = 0
            for dot in range(max(top - row * 4, 0), min(bottom - row * 4, 3) + 1):
                mask |= bits[dot]
            if owner[row][column] != style:  # the upper curve replaces the lower one in the cell
                dots[row][column] = 0
                owner[row][column] = style
            dots[row][column] |= mask


def _character(bits: int, ascii_only: bool) -> str:
    if not bits:
        return " "
    if not ascii_only:
        return chr(0x2800 + bits)
    upper, lower = bool(bits & 0x1B), bool(bits & 0xE4)
    return _ASCII[upper, lower]
