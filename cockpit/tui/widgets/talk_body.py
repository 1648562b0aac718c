"""The turns of a conversation, in lines that scroll; at its end, the view follows an answer that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cockpit.text.safe_text import safe_text
from cockpit.tui.look.wrapping import wrapped

Kind = Literal["name", "prompt", "answer", "note", "error", "good", "bad"]
LONGEST_LINE = 20_000
MOST_LINES = 4_000
"""Lines of one text that are drawn; the last line says how many more there are."""


@dataclass(frozen=True)
class Passage:
    """A text of one kind; it need not be safe."""

    kind: Kind
    text: str


def passage_rows(passage: Passage, width: int) -> list[str]:
    """The safe rows of a passage, of at most `width` cells."""
    lines = passage.text.replace("\r\n", "\n").split("\n")
    rows = [row for line in lines[:MOST_LINES] for row in _line_rows(safe_text(line, LONGEST_LINE), width)]
    return rows if len(lines) <= MOST_LINES else [*rows, f"… {len(lines) - MOST_LINES} more lines"]


def _line_rows(line: str, width: int) -> list[str]:
    """A line in rows that all have its indent, as code needs it; an indent of half the width is dropped."""
    indent = len(line) - len(line.lstrip(" "))
    if not 0 < indent < width // 2:
        return wrapped(line, width)
    return [" " * indent + row for row in wrapped(line[indent:], width - indent)]


class TalkBody(ScrollView, can_focus=True):
    """Passages one after another."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"talk-body--{kind}" for kind in ("name", "prompt", "answer", "note", "error", "good", "bad")
    }
    DEFAULT_CSS = """
    TalkBody { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; padding: 0 1; }
    TalkBody > .talk-body--name { color: $primary; text-style: bold; }
    TalkBody > .talk-body--prompt { color: $foreground; text-style: bold; }
    TalkBody > .talk-body--answer { color: $foreground; }
    TalkBody > .talk-body--note { color: $text-muted; }
    TalkBody > .talk-body--error { color: $error; }
    TalkBody > .talk-body--good { color: $success; }
    TalkBody > .talk-body--bad { color: $warning; }
    """

    def __init__(self, *, follows: bool = True, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._follows = follows
        self._passages: list[Passage] = []
        self._rows: list[list[str]] = []
        self._width = 0
        self._flat: list[tuple[Kind, str]] = []

    @property
    def text(self) -> str:
        """All rows, as they are drawn."""
        return "\n".join(row for _, row in self._flat)

    def show(self, passages: Sequence[Passage], *, from_start: bool = False) -> None:
        """Show these passages; those at the beginning that did not change keep their rows."""
        at_end = self._follows and self.scroll_offset.y >= self.max_scroll_y
        same = 0
        while same < min(len(passages), len(self._passages)) and passages[same] == self._passages[same]:
            same += 1
        if same == len(passages) == len(self._passages) and not from_start:
            return
        self._passages = list(passages)
        self._rows = self._rows[:same] + [passage_rows(one, self._cells) for one in passages[same:]]
        self._place(at_end=at_end and not from_start)
        if from_start:
            self.scroll_to(y=0, animate=False, force=True)

    def on_resize(self) -> None:
        if self._cells != self._width:
            at_end = self._follows and self.scroll_offset.y >= self.max_scroll_y
            self._rows = [passage_rows(one, self._cells) for one in self._passages]
            self._place(at_end=at_end)

    @property
    def _cells(self) -> int:
        return max(5, self.scrollable_content_region.width - 2)

    def _place(self, *, at_end: bool) -> None:
        self._width = self._cells
        self._flat = [
            (passage.kind, row) for passage, rows in zip(self._passages, self._rows, strict=True) for row in rows
        ]
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._flat))
        if at_end:
            self.scroll_to(y=max(0, len(self._flat) - self.scrollable_content_region.height), animate=False, force=True)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        index = y + int(self.scroll_offset.y)
        if not 0 <= index < len(self._flat):
            return Strip.blank(width, self.rich_style)
        kind, row = self._flat[index]
        return Strip([Segment(row, self._style(kind))]).adjust_cell_length(width, self.rich_style)

    def _style(self, kind: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"talk-body--{kind}", partial=True)
