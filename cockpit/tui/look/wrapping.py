"""Text in rows of a given number of cells: wrapped at spaces, or cut with a mark. The text must already be safe, except
for `wrapped_lines`, which makes it so."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells, set_cell_size

from cockpit.text.safe_text import safe_text

MOST_LINES = 40
"""Lines of one text that are kept apart: more of them would push everything else off the screen."""


def wrapped(text: str, width: int) -> list[str]:
    """The text in rows of at most `width` cells, broken at spaces; a longer word is broken anywhere. Nothing is lost.

    An empty text is one empty row.
    """
    width = max(1, width)
    rows: list[str] = []
    row = ""
    for word in text.split(" "):
        longer = f"{row} {word}" if row else word
        if cell_len(longer) <= width:
            row = longer
            continue
        if row:
            rows.append(row)
        *full, row = chop_cells(word, width) or [""]
        rows += full
    return [*rows, row]


def wrapped_lines(text: str, width: int, most: int) -> list[str]:
    """A text that is not safe yet, in rows of at most `width` cells, with its line ends kept.

    A problem with a list has it in lines of its own: run together, forty rows of a file cannot be read.

    Args:
        text: the text; from `MOST_LINES` on, its line ends are drawn as arrows.
        width: cells of a row.
        most: characters that are kept.
    """
    kept = text if len(text) <= most else text[: most - 1] + "…"
    return [row for line in kept.split("\n", MOST_LINES) for row in wrapped(safe_text(line, most), width)]


def cut(text: str, width: int, mark: str = "…") -> str:
    """The text if it fits, else its start and the mark, `width` cells together."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - cell_len(mark))).rstrip() + mark


def shortened(text: str, width: int, mark: str = "…") -> str:
    """The text if it fits, else its first third, the mark, and its end: names that differ at the end stay different."""
    if cell_len(text) <= width:
        return text
    room = max(0, width - cell_len(mark))
    head = room // 3
    tail = text
    while tail and cell_len(tail) > room - head:
        tail = tail[1:]
    return set_cell_size(text, room - cell_len(tail)).rstrip() + mark + tail
