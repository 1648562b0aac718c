"""A table as lines of text, aligned by terminal cells; it has no frame, so that `grep` and `cut` work on it."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

GAP = "  "


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table; columns that are empty in every row are left out.

    Args:
        titles: heading of each column.
        rows: cells, already safe to print.
        right: columns that are aligned to the right.
    """
    shown = [column for column in range(len(titles)) if any(row[column] for row in rows)]
    widths = {column: max(cells(titles[column]), *(cells(row[column]) for row in rows)) for column in shown}

    def line(values: Sequence[str]) -> str:
        parts = [_padded(values[column], widths[column], column in right) for column in shown]
        return GAP.join(parts).rstrip()

    rule = GAP.join("─" * widths[column] for column in shown)
    return [line(titles), rule, *(line(row) for row in rows)]


def cells(text: str) -> int:
    """The number of terminal cells that safe text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cells(text))
    return space + text if right else text + space
