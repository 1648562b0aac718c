"""The charts of a run as shapes on a page: one panel for each metric of each stage that has steps.

Curves have at most four points for each pixel of width: the first, the smallest, the largest and the last value of
every column, so that no spike is lost. Where a value is missing or not finite, the line is interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cockpit.runs.series import Series
from cockpit.runs.stage_view import StageView
from cockpit.runs.state import EVAL, RunState
from cockpit.text import formatting as fmt
from cockpit.text.axes import Domain, fitted, ticks
from cockpit.text.safe_text import safe_text
from recipes.stages.registry import loss_unit

WIDTH = 960
PANEL = 240
HEAD = 40
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 34, 42
"""Margins of the plot in its panel, in pixels."""
FIRST = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "step_s")
UNITS = {
    "grad_norm": "L2 norm before clipping",
    "tokens_per_second": "tokens per second",
    "step_s": "seconds per step",
    "data_wait_s": "seconds of a step",
    "learning_rate": "used by the step",
}
MOST_PANELS = 60

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points that are joined."""

    points: list[Point]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    at: Point
    radius: float
    colour: str


@dataclass(frozen=True)
class Label:
    """A line of text; `anchor` says which part of it is at the point: start, middle or end."""

    at: Point
    text: str
    anchor: str = "start"
    colour: str = "#444444"
    bold: bool = False


@dataclass
class Figure:
    """A page of shapes, in pixels from its upper left corner."""

    width: int
    height: int
    shapes: list[Line | Dot | Label] = field(default_factory=list)


def figure_of(
    state: RunState, *, stages: Sequence[str] = (), log: Sequence[str] = (), metrics: Sequence[str] = ()
) -> Figure:
    """The charts of a run; without steps, a page that says so.

    Args:
        state: the fold of the run's journal.
        stages: only these; empty for all.
        log: metrics with a logarithmic value axis.
        metrics: only these; empty for all.
    """
    panels = [
        (stage, name)
        for stage in state.stages
        if not stages or stage.name in stages
        for name in _names(state, stage)
        if not metrics or name in metrics
    ][:MOST_PANELS]
    figure = Figure(WIDTH, HEAD + PANEL * max(1, len(panels)))
    title = f"{state.run_id}  {state.recipe}, {state.state}"
    figure.shapes.append(Label((LEFT, 26), safe_text(title, 120), bold=True, colour="#111111"))
    if not panels:
        figure.shapes.append(Label((LEFT, HEAD + 40), "no stage of this run has steps"))
    for number, (stage, name) in enumerate(panels):
        _draw(figure, HEAD + number * PANEL, state, stage, name, log=name in log)
    return figure


def _names(state: RunState, stage: StageView) -> list[str]:
    names = state.series_names(stage.name)
    ordered = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    return [name for name in ordered if len(state.series(stage.name, name))]


def _draw(figure: Figure, top: float, state: RunState, stage: StageView, name: str, *, log: bool) -> None:
    series = state.series(stage.name, name)
    dots = state.series(stage.name, EVAL + name)
    plot = _Plot(LEFT, top + TOP, WIDTH - LEFT - RIGHT, PANEL - TOP - BOTTOM, series, dots, log=log)
    unit = loss_unit(stage.kind) if name == "loss" else UNITS.get(name, "")
    scale = ", logarithmic" if log else ""
    heading = f"{stage.name}: {name}" + (f" ({unit}{scale})" if unit or log else "")
    last = next((value for value in reversed(series.y) if math.isfinite(value)), None)
    figure.shapes.append(Label((LEFT, top + 20), safe_text(heading, 90), bold=True, colour="#111111"))
    ending = [f"last {fmt.number(last)}"] if last is not None else []
    ending += [f"{fmt.counted(len(dots), 'evaluation')}, last {fmt.number(dots.y[-1])}"] if len(dots) else []
    figure.shapes.append(Label((WIDTH - RIGHT, top + 20), "; ".join(ending), "end"))
    figure.shapes += plot.frame()
    figure.shapes += [Line(points, "#1f77b4", 1.2) for points in plot.lines(series)]
    figure.shapes += [Dot(plot.place(x, y), 3.2, "#d62728") for x, y in zip(dots.x, dots.y, strict=True) if plot.has(y)]


class _Plot:
    """The rectangle of one chart and its two axes."""

    def __init__(
        self, left: float, top: float, width: float, height: float, series: Series, dots: Series, *, log: bool
    ) -> None:
        self.left, self.top, self.width, self.height = left, top, width, height
        self._log = log
        values = [y for part in (series, dots) for y in part.y if self.has(y)]
        steps = [x for part in (series, dots) for x in part.x]
        self.values = fitted(min(values, default=1.0 if log else 0.0), max(values, default=1.0), log=log)
        first = min(steps)
        self.steps = Domain(first, max(first + 1, *steps))

    def has(self, value: float) -> bool:
        """Whether the value can be drawn."""
        return math.isfinite(value) and (not self._log or value > 0)

    def place(self, step: float, value: float) -> Point:
        """The pixel of a value."""
        x = self.left + self.width * self.steps.share(step)
        return x, self.top + self.height * (1 - self.values.share(value))

    def frame(self) -> Iterator[Line | Label]:
        """Axes, grid, ticks and their labels."""
        bottom, right = self.top + self.height, self.left + self.width
        marks, gap = ticks(self.values, 6)
        for value in marks:
            y = self.place(self.steps.lo, value)[1]
            yield Line([(self.left, y), (right, y)], "#dddddd")
            yield Label((self.left - 6, y + 4), fmt.tick(value, gap), "end")
        marks, gap = ticks(self.steps, 8)
        for step in marks:
            x = self.place(step, self.values.lo)[0]
            yield Line([(x, bottom), (x, bottom + 4)], "#888888")
            yield Label((x, bottom + 17), fmt.tick(step, gap), "middle")
        yield Line([(self.left, self.top), (self.left, bottom), (right, bottom)], "#888888")
        yield Label(((self.left + right) / 2, bottom + 34), "step", "middle")

    def lines(self, series: Series) -> Iterator[list[Point]]:
        """The curve as joined pieces; a single value between two gaps is a short dash."""
        for piece in self._pieces(series):
            points = [self.place(x, y) for x, y in _reduced(piece, self)]
            yield points if len(points) > 1 else [points[0], (points[0][0] + 1, points[0][1])]

    def _pieces(self, series: Series) -> Iterator[list[Point]]:
        piece: list[Point] = []
        for x, y in zip(series.x, series.y, strict=True):
            if self.has(y):
                piece.append((x, y))
            elif piece:
                yield piece
                piece = []
        if piece:
            yield piece


def _reduced(piece: list[Point], plot: _Plot) -> list[Point]:
    """At most four points for each pixel of width."""
    if len(piece) <= 4 * plot.width:
        return piece
    columns: dict[int, list[Point]] = {}
    for point in piece:
        columns.setdefault(int(plot.place(*point)[0]), []).append(point)
    kept: list[Point] = []
    for points in columns.values():
        chosen = {points[0], min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1]), points[-1]}
        kept += sorted(chosen)
    return kept
