"""The lane of a chart: marks of what happened, on a row of their own between the curves and the labels of the x axis.

A mark has a position, a kind and the kind's glyph. Marks are never behind a label, two that fall on one cell stand side
by side, and a lane with more marks than room shows every second cell at most: it is decimated, not filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cockpit.tui.charts.canvas import column_of


class MarkKind(StrEnum):
    """The kinds of marks, most important first: where there is no room, the later kind gives way."""

    GUARD = "guard"
    CONTROL = "control"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"


class Glyph(NamedTuple):
    """How a kind is drawn: its character, its character without Unicode, and the name of its style."""

    character: str
    ascii: str
    style: str


GLYPHS = {
    MarkKind.GUARD: Glyph("!", "!", "bad"),
    MarkKind.CONTROL: Glyph("▾", "v", "control"),
    MarkKind.RESUME: Glyph("┆", "|", "axis"),
    MarkKind.CHECKPOINT: Glyph("◆", "*", "mark"),
}


@dataclass(frozen=True)
class LaneMark:
    """Something that happened at a position of the x axis."""

    x: float
    kind: MarkKind


class Placed(NamedTuple):
    """A mark and the column in which it is drawn."""

    column: int
    kind: MarkKind


class Lane:
    """Marks of one x axis. Where they stand is kept for the last axis: many marks cost nothing while it is the same."""

    def __init__(self, marks: Iterable[LaneMark] = ()) -> None:
        self.marks = list(marks)
        self._placed: tuple[object, list[Placed]] | None = None

    def __bool__(self) -> bool:
        return bool(self.marks)

    def placed(self, x: tuple[float, float], width: int) -> list[Placed]:
        """The marks of [x0, x1] with their columns."""
        key = (x, width)
        if self._placed is None or self._placed[0] != key:
            self._placed = (key, placed(self.marks, x, width))
        return self._placed[1]


def placed(marks: Iterable[LaneMark], x: tuple[float, float], width: int) -> list[Placed]:
    """The marks of [x0, x1] with their columns, left to right.

    A mark whose cell is taken moves by one or two cells. Of a kind with more marks than half of the cells, no two are
    neighbours.
    """
    taken: dict[int, MarkKind] = {}
    found = [mark for mark in marks if x[0] <= mark.x <= x[1]]
    for kind in MarkKind:
        columns = sorted(column_of(mark.x, *x, width) for mark in found if mark.kind == kind)
        for column in _thinned(columns, width):
            free = next((c for c in _near(column) if 0 <= c < width and c not in taken), None)
            if free is not None:
                taken[free] = kind
    return [Placed(column, kind) for column, kind in sorted(taken.items())]


def _thinned(columns: Sequence[int], width: int) -> list[int]:
    """The columns; every second cell at most when there are more than half as many as cells."""
    if len(columns) <= width // 2:
        return list(columns)
    kept: list[int] = []
    for column in columns:
        if not kept or column >= kept[-1] + 2:
            kept.append(column)
    return kept


def _near(column: int) -> tuple[int, ...]:
    return column, column + 1, column - 1, column + 2, column - 2
