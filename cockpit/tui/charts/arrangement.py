"""Which charts a screen has room for, and in how many columns and rows."""

from __future__ import annotations

from typing import NamedTuple


class Arrangement(NamedTuple):
    """The numbers of the charts that are shown, and the grid that they fill."""

    shown: list[int]
    columns: int
    rows: int


def arrangement(count: int, chosen: int, *, wide: bool, alone: bool, crowded: bool) -> Arrangement:
    """Arrange the charts of a page.

    Args:
        count: charts of the page.
        chosen: the number of the chosen one; it is always shown.
        wide: the screen has room for three columns.
        alone: show the chosen chart alone.
        crowded: two rows of charts would be too low to read.
    """
    if alone:
        return Arrangement([min(chosen, count - 1)], 1, 1)
    if wide:
        return Arrangement(list(range(count)), 3 if count > 4 else 2, 2 if count > 2 else 1)
    if crowded:
        first = min(chosen // 2 * 2, max(0, count - 2))
        return Arrangement(list(range(first, min(count, first + 2))), min(2, max(1, count)), 1)
    first = 2 if chosen >= 4 else 0
    shown = list(range(first, min(count, first + 4)))
    return Arrangement(shown, 2 if len(shown) > 1 else 1, 2 if len(shown) > 2 else 1)
