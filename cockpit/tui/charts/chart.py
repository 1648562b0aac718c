"""One chart: a title line and curves with their axes; only changed cells are sent to the terminal.

NaN and the infinities are gaps with a red mark on the top row. The smoothed curve is bright, over dim raw values whose
extremes are always drawn. Evaluations never hide it: a few are single points, many are a line under it with a point
here and there. Checkpoints, guards and requests are marks in a lane of their own.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from cockpit.runs.series import Series
from cockpit.text import formatting as fmt
from cockpit.text.axes import Domain, kept, ticks, time_ticks
from cockpit.text.safe_text import safe_text
from cockpit.tui.charts.canvas import Mark, Row, Span, bad_columns, column_of, draw, spans_of
from cockpit.tui.charts.lane import GLYPHS, Lane, Placed
from cockpit.tui.look.theme import CROSS, ascii_only

STYLES = ("text", "raw", "line", "old", "eval", "bad", "guard", "mark", "control", "axis", "title", "chosen")
TEXT, RAW, LINE, OLD, EVAL, BAD, GUARD, MARK, CONTROL, AXIS, TITLE, CHOSEN = range(len(STYLES))
MIN_WIDTH, MIN_HEIGHT = 18, 4
LANE_HEIGHT, ALWAYS_LANE_HEIGHT = 6, 9
"""Rows of a chart from which marks have a row of their own, and from which that row is there without marks too."""
POINT_EVERY, MANY_POINTS_EVERY = 4, 8
"""Cells between two points of evaluations; the second when they are so many that a line is drawn."""


@dataclass(frozen=True)
class ChartData:
    """The content of a chart. Series grow in place; the rest is passed with every `show`.

    Attributes:
        name: the measured quantity, at the start of the title.
        summary: the rest of the title, with the newest value.
        shorter: the same in fewer characters, for a chart that is too narrow for it.
        raw: the values.
        smooth: their moving average; None without smoothing.
        old: values that a resume replaced.
        points: single points (evaluations).
        x: left and right edge of the x axis.
        x_is_time: x is Unix seconds, labelled as the time since the left edge.
        label: formats a tick of the y axis from its value and the distance between ticks.
        log: logarithmic y axis.
        limit: a guard's limit, drawn as a line when it is in range.
        marks: what happened, for the lane above the labels of the x axis.
        x_end: the label of the right edge; empty: its number.
        longest: points that are further apart are not joined.
        cursor: position of the inspection line.
        floor: the y axis includes this value.
        unit: ticks are round multiples of this (for example the bytes of a GiB).
    """

    name: str
    raw: Series
    x: tuple[float, float]
    summary: str = ""
    shorter: str = ""
    smooth: Series | None = None
    old: Sequence[Series] = ()
    points: Series | None = None
    x_is_time: bool = False
    label: Callable[[float, float], str] = fmt.tick
    log: bool = False
    limit: float | None = None
    marks: Lane = field(default_factory=Lane)
    x_end: str = ""
    longest: float = math.inf
    cursor: float | None = None
    floor: float | None = None
    unit: float = 1.0


class Chart(Widget):
    """Draws `ChartData`. `show` repaints the cells that differ, and nothing while the chart is not on screen."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"chart--{name}" for name in STYLES}
    DEFAULT_CSS = """
    Chart { height: 1fr; width: 1fr; background: $background; }
    Chart > .chart--text { color: $foreground; }
    Chart > .chart--raw { color: $chart-raw; }
    Chart > .chart--line { color: $chart-line; }
    Chart > .chart--old { color: $chart-old; }
    Chart > .chart--eval { color: $chart-eval; text-style: bold; }
    Chart > .chart--bad { color: $chart-bad; text-style: bold; }
    Chart > .chart--guard { color: $chart-guard; }
    Chart > .chart--mark { color: $chart-mark; }
    Chart > .chart--control { color: $chart-control; text-style: bold; }
    Chart > .chart--axis { color: $chart-axis; }
    Chart > .chart--title { color: $chart-title; }
    Chart > .chart--chosen { color: $primary; text-style: bold; }
    """

    class Clicked(Message):
        """The chart was clicked."""

        def __init__(self, chart: Chart) -> None:
            super().__init__()
            self.chart = chart

        @property
        def control(self) -> Chart:
            return self.chart

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.data: ChartData | None = None
        self.chosen = False
        self._y: Domain | None = None
        self._rows: list[Row] = []
        self._strips: list[Strip] = []
        self._palette: list[Style] = []

    # ---- data

    def show(self, data: ChartData) -> None:
        """Show new data; only cells that differ are repainted."""
        self.data = data
        if self.is_on_screen:
            self._sync()
        else:
            self._rows, self._strips = [], []

    def fit(self) -> None:
        """Reset the y axis; the next drawing fits it to the data."""
        self._y = None

    @property
    def is_on_screen(self) -> bool:
        """Whether any part of the chart is visible."""
        return self.display and self.is_attached and self.size.width > 0 and self.size.height > 0

    def _sync(self) -> None:
        rows = self._draw()
        if len(rows) != len(self._rows):
            self._rows, self._strips = rows, [self._strip(row) for row in rows]
            self.refresh()
            return
        for y, (old, new) in enumerate(zip(self._rows, rows, strict=True)):
            if old != new:
                self._strips[y] = self._strip(new)
                self.refresh(_difference(old, new, y))
        self._rows = rows

    # ---- drawing

    def render_line(self, y: int) -> Strip:
        if not self._strips:
            self._rows = self._draw()
            self._strips = [self._strip(row) for row in self._rows]
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    def on_resize(self) -> None:
        self._forget()

    def on_show(self) -> None:
        self._forget()

    def notify_style_update(self) -> None:
        """Redraw with the new colours."""
        super().notify_style_update()
        self._palette = []
        self._forget()

    def on_click(self) -> None:
        self.post_message(self.Clicked(self))

    def _forget(self) -> None:
        self._rows, self._strips = [], []
        self.refresh()

    def _draw(self) -> list[Row]:
        width, height = self.size
        if self.data is None or width < MIN_WIDTH or height < MIN_HEIGHT:
            return [Row(" " * width, bytes(width))] * height
        self._y = self._axis(self.data)
        return draw_chart(self.data, self._y, width, height, chosen=self.chosen)

    def _axis(self, data: ChartData) -> Domain | None:
        extents = [
            s.extent(*data.x) for s in (data.raw, *data.old, *([data.points] if data.points is not None else []))
        ]
        found = [extent for extent in extents if extent is not None]
        if not found:
            return None
        lo, hi = min(e[0] for e in found), max(e[1] for e in found)
        if data.floor is not None and not data.log:
            lo, hi = min(lo, data.floor), max(hi, data.floor)
        return kept(self._y, lo, hi, log=data.log)

    def _strip(self, row: Row) -> Strip:
        if not self._palette:
            base = self.rich_style
            self._palette = [base + self.get_component_rich_style(f"chart--{name}", partial=True) for name in STYLES]
        segments, start, styles = [], 0, row.styles
        for end in range(1, len(styles) + 1):
            if end == len(styles) or styles[end] != styles[start]:
                segments.append(Segment(row.text[start:end], self._palette[styles[start]]))
                start = end
        return Strip(segments, len(styles))


def draw_chart(data: ChartData, y: Domain | None, width: int, height: int, *, chosen: bool = False) -> list[Row]:
    """All rows of a chart: title, plot with the y axis at its left, x axis."""
    title = _title(data, width, chosen)
    if y is None:
        note = Row("no values yet".center(width)[:width].ljust(width), bytes([AXIS]) * width)
        rows = [Row(" " * width, bytes(width))] * (height - 1)
        rows[(height - 2) // 2] = note
        return [title, *rows]
    has_lane = height >= (LANE_HEIGHT if data.marks else ALWAYS_LANE_HEIGHT)
    plot_height = height - (3 if has_lane else 2)
    # Values that nothing measured (a damaged record) have labels without end: the plot keeps half of the width.
    labels = {row: text for row, text in _y_labels(data, y, plot_height).items() if len(text) < width // 2}
    gutter = max((len(text) for text in labels.values()), default=0) + 1
    plot_width = width - gutter
    rows = _plot(data, y, plot_width, plot_height)
    bar = "|" if ascii_only() else "│"
    tick = "+" if ascii_only() else "┤"
    full = [
        Row(
            (labels[at].rjust(gutter - 1) + tick if at in labels else " " * (gutter - 1) + bar) + row.text,
            bytes([AXIS]) * gutter + row.styles,
        )
        for at, row in enumerate(rows)
    ]
    marks = data.marks.placed(data.x, plot_width)
    if has_lane:
        return [title, *full, _lane(marks, gutter, plot_width), _x_labels(data, gutter, plot_width, [], corner=" ")]
    return [title, *full, _x_labels(data, gutter, plot_width, marks, corner="+" if ascii_only() else "└")]


def _title(data: ChartData, width: int, chosen: bool) -> Row:
    pointer = (">" if ascii_only() else "▸") if chosen else " "
    name = safe_text(f"{pointer}{data.name}", limit=width)
    fits = len(name) + 1 + len(data.summary) <= width
    summary = data.summary if fits or not data.shorter else data.shorter
    rest = safe_text(f" {summary}", limit=max(0, width - len(name)))
    text = (name + rest)[:width].ljust(width)
    styles = bytearray([CHOSEN if chosen else TITLE]) * len(name) + bytearray([TEXT]) * (width - len(name))
    for character, style in (("●", EVAL), (CROSS, BAD)):
        at = text.find(character)
        if at >= 0:
            styles[at] = style
    return Row(text, bytes(styles[:width]))


def _y_labels(data: ChartData, y: Domain, height: int) -> dict[int, str]:
    values, step = ticks(Domain(y.lo / data.unit, y.hi / data.unit, y.log), max(2, (height + 1) // 2))
    labels: dict[int, str] = {}
    for value in values:
        row = _row_of(value * data.unit, y, height)
        labels.setdefault(row, data.label(value, step))
    return labels


def _plot(data: ChartData, y: Domain, width: int, height: int) -> list[Row]:
    x0, x1 = data.x
    plain = ascii_only()

    def spans(series: Series) -> list[Span]:
        return spans_of(series, x0, x1, 2 * width, y, data.longest)

    curves: list[tuple[int, list[Span]]] = [(OLD, spans(series)) for series in data.old]
    if data.smooth is not None:
        curves.append((RAW, spans(data.raw)))
    points, many = _points(data.points, x0, x1, width)
    if many and data.points is not None:
        curves.append((EVAL, spans_of(data.points, x0, x1, 2 * width, y)))
    curves.append((LINE, spans(data.raw if data.smooth is None else data.smooth)))
    marks: list[Mark] = []
    if data.limit is not None and y.lo <= data.limit <= y.hi:
        row = _row_of(data.limit, y, height)
        marks += [Mark(column, row, "-" if plain else "╌", GUARD, under=True) for column in range(width)]
    if data.cursor is not None:
        column = column_of(data.cursor, x0, x1, width)
        marks += [Mark(column, row, "|" if plain else "│", AXIS, under=True) for row in range(height)]
    marks += [Mark(column, _row_of(value, y, height), "o" if plain else "●", EVAL) for column, value in points]
    for source in (*data.old, data.raw, *([data.points] if data.points is not None else [])):
        marks += [Mark(column, 0, "x" if plain else CROSS, BAD) for column in bad_columns(source, x0, x1, width)]
    return draw(curves, marks, width, height, ascii_only=plain)


def _points(series: Series | None, x0: float, x1: float, width: int) -> tuple[list[tuple[int, float]], bool]:
    """Columns and values of the points to draw, the newest always among them, and whether they are only some of many.

    Points stand at least `POINT_EVERY` cells apart, so that most columns show the curve. Reads O(width) points.
    """
    if series is None:
        return [], False
    x, y = series.x, series.y
    first, last = bisect_left(x, x0), bisect_right(x, x1)
    many = last - first > width // MANY_POINTS_EVERY
    apart = (MANY_POINTS_EVERY if many else POINT_EVERY) * (x1 - x0) / width
    found: list[tuple[int, float]] = []
    at = last - 1
    while at >= first:
        if math.isfinite(y[at]):
            found.append((column_of(x[at], x0, x1, width), y[at]))
            at = bisect_right(x, x[at] - apart, first, at) - 1
        else:
            at -= 1
    return found, many


def _row_of(value: float, y: Domain, height: int) -> int:
    return height - 1 - min(height - 1, int(y.share(value) * height))


def _lane(marks: Sequence[Placed], gutter: int, width: int) -> Row:
    """The axis line with the marks on it."""
    plain = ascii_only()
    text = [" "] * (gutter - 1) + ["+" if plain else "└"] + ["-" if plain else "─"] * width
    styles = bytearray([AXIS]) * (gutter + width)
    _set_marks(marks, gutter, text, styles)
    return Row("".join(text), bytes(styles))


def _set_marks(marks: Sequence[Placed], gutter: int, text: list[str], styles: bytearray) -> None:
    for column, kind in marks:
        glyph = GLYPHS[kind]
        text[gutter + column] = glyph.ascii if ascii_only() else glyph.character
        styles[gutter + column] = STYLES.index(glyph.style)


def _x_labels(data: ChartData, gutter: int, width: int, marks: Sequence[Placed], *, corner: str) -> Row:
    """The labels of the x axis; a label that would cover one of these marks is left out."""
    text = [" "] * (gutter - 1) + [corner] + [" "] * width
    styles = bytearray([AXIS]) * (gutter + width)
    _set_marks(marks, gutter, text, styles)
    taken = {gutter + mark.column for mark in marks}
    right = gutter + width
    for value, label in _labels_by_importance(data, width):
        centre = gutter + column_of(value, *data.x, width)
        start = min(max(centre - len(label) // 2, gutter), right - len(label))
        cells = range(start, start + len(label))
        if start >= gutter and not taken.intersection(range(start - 2, start + len(label) + 2)):
            text[start : start + len(label)] = label
            taken.update(cells)
    return Row("".join(text), bytes(styles))


def _labels_by_importance(data: ChartData, width: int) -> list[tuple[float, str]]:
    """Positions and labels: the right edge, the left edge, then the others."""
    x0, x1 = data.x
    if data.x_is_time:
        offsets = time_ticks(x1 - x0, max(2, width // 12))
        inner = [(x0 + offset, fmt.time_tick(offset)) for offset in offsets if offset != x1 - x0]
        return [(x1, fmt.duration(x1 - x0)), *inner]
    values, step = ticks(Domain(x0, x1), max(2, width // 9))
    inner = [(value, fmt.tick(value, step)) for value in values if value != x1]
    return [(x1, data.x_end or fmt.count(x1)), *inner]


def _difference(old: Row, new: Row, y: int) -> Region:
    if len(old.text) != len(new.text):
        return Region(0, y, len(new.text), 1)
    changed = [x for x in range(len(new.text)) if old.text[x] != new.text[x] or old.styles[x] != new.styles[x]]
    return Region(changed[0], y, changed[-1] + 1 - changed[0], 1)
