"""The log of a run: draws only visible rows, and follows new lines until the operator scrolls up.

Following is a flag that keys set, never a conclusion from the geometry: a jump, a resize or an attach cannot end it.
Warnings and errors are wrapped, so that the sentence that matters is never cut; other lines take one row each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from cockpit.runs.log_lines import LogLine
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import ascii_only
from cockpit.tui.look.wrapping import cut, wrapped_lines

LEVELS = ("quiet", "info", "good", "warn", "error")
WRAPPED_LEVELS = ("warn", "error")
LONGEST_LINE = 4000
"""Characters of one line that are drawn; the journal has the rest."""
WHEEL_ROWS = 3


class LogRow(NamedTuple):
    """One row: its line's index, its number within the line, and its text without the clock."""

    line: int
    part: int
    text: str


class LogView(Widget):
    """Log lines with a title row that counts warnings and errors.

    Attributes:
        following: whether the newest line is in view and stays there when lines arrive.
        end_key: the key that follows again, named in the title row.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"log-view--{level}" for level in LEVELS),
        "log-view--time",
        "log-view--rule",
    }
    DEFAULT_CSS = """
    LogView { height: 5; background: $background; }
    LogView > .log-view--quiet { color: $text-muted; }
    LogView > .log-view--info { color: $foreground; }
    LogView > .log-view--good { color: $success; }
    LogView > .log-view--warn { color: $warning; }
    LogView > .log-view--error { color: $error; text-style: bold; }
    LogView > .log-view--time { color: $text-disabled; }
    LogView > .log-view--rule { color: $text-disabled; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.title = "log"
        self.following = True
        self.end_key = "end"
        self._lines: Sequence[LogLine] = ()
        self._rows: list[LogRow] = []
        self._bottom = 0
        self._drawn: list[object] = []

    # ---- content

    def show(self, lines: Sequence[LogLine], title: str = "log") -> None:
        """Show these lines, oldest first; while the view does not follow, it stays on the lines that it shows."""
        self.title = title
        if lines != self._lines:
            anchor = self._anchor()
            self._lines = lines
            self._lay_out()
            self._bottom = len(self._rows) if self.following else self._place_of(anchor)
        self._repaint()

    @property
    def shown(self) -> list[LogRow]:
        """The rows in view, oldest first."""
        stop = len(self._rows) if self.following else self._clamped(self._bottom)
        return self._rows[max(0, stop - self._room) : stop]

    @property
    def newer(self) -> int:
        """Lines below the last row in view."""
        shown = self.shown
        return len(self._lines) - 1 - shown[-1].line if shown else 0

    # ---- moving

    def scroll_rows(self, by: int) -> None:
        """Move the view by a number of rows; at the last row it follows again."""
        start = len(self._rows) if self.following else self._bottom
        self._bottom = self._clamped(start + by)
        self.following = self._bottom >= len(self._rows)
        self._repaint()

    def show_oldest(self) -> None:
        """Show the oldest lines."""
        self.scroll_rows(-len(self._rows))

    def follow(self) -> None:
        """Show the newest line, and follow new ones."""
        self.following = True
        self._repaint()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.scroll_rows(-WHEEL_ROWS)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.scroll_rows(WHEEL_ROWS)

    # ---- layout

    @property
    def _room(self) -> int:
        return max(0, self.size.height - 1)

    def _clamped(self, bottom: int) -> int:
        return max(min(self._room, len(self._rows)), min(len(self._rows), bottom))

    def _lay_out(self) -> None:
        width = max(1, self.size.width - _CLOCK_CELLS)
        self._rows = [
            LogRow(index, part, text)
            for index, line in enumerate(self._lines)
            for part, text in enumerate(_rows_of(line.text, line.level in WRAPPED_LEVELS, width))
        ]

    def _anchor(self) -> tuple[LogLine, int, int] | None:
        """The line of the last row in view, its index, and the row's number within it."""
        if self.following or not self._rows:
            return None
        row = self._rows[min(len(self._rows), self._bottom) - 1]
        return self._lines[row.line], row.line, row.part

    def _place_of(self, anchor: tuple[LogLine, int, int] | None) -> int:
        """The end of the view that has the anchor as its last row; the nearest place when its line is gone."""
        if anchor is None:
            return self._clamped(self._bottom)
        line, index, part = anchor
        found = [at for at, other in enumerate(self._lines) if other == line]
        if not found:
            return self._clamped(0)
        nearest = min(found, key=lambda at: abs(at - index))
        rows = [at for at, row in enumerate(self._rows) if row.line == nearest and row.part <= part]
        return self._clamped(rows[-1] + 1)

    def on_resize(self) -> None:
        anchor = self._anchor()
        self._lay_out()
        self._bottom = len(self._rows) if self.following else self._place_of(anchor)
        self._drawn = []
        self.refresh()

    # ---- drawing

    def _repaint(self) -> None:
        lines = self._lines
        shown: list[object] = [(lines[row.line].t, lines[row.line].level, row.part, row.text) for row in self.shown]
        now = [self._rule_words(), *shown, *[None] * (self._room - len(shown))]
        if len(now) != len(self._drawn):
            self.refresh()
        else:
            for y, (old, new) in enumerate(zip(self._drawn, now, strict=True)):
                if old != new:
                    self.refresh(Region(0, y, self.size.width, 1))
        self._drawn = now

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._rule(width)
        shown = self.shown
        if y > len(shown):
            return Strip.blank(width, self.rich_style)
        row = shown[y - 1]
        line = self._lines[row.line]
        clock = f" {fmt.clock(line.t)} " if row.part == 0 else " " * _CLOCK_CELLS
        strip = Strip([Segment(clock, self._style("time")), Segment(row.text, self._style(line.level))])
        return strip.adjust_cell_length(width, self.rich_style)

    def _rule_words(self) -> tuple[str, str, int]:
        """The words at the left and at the right of the title row, and the number of errors."""
        warnings, errors = (sum(1 for line in self._lines if line.level == level) for level in ("warn", "error"))
        newer = self.newer
        arrow = "" if ascii_only() else "▼ "
        notes = [] if self.following else [f"{self.end_key} {arrow}{fmt.counted(newer, 'newer line')}"]
        notes += [fmt.counted(warnings, "warning")] if warnings else []
        notes += [fmt.counted(errors, "error")] if errors else []
        return safe_text(self.title, 60), (", " if ascii_only() else " · ").join(notes), errors

    def _rule(self, width: int) -> Strip:
        title, notes, errors = self._rule_words()
        dash = "-" if ascii_only() else "─"
        left, right = f"{dash} {title} ", f" {notes} {dash}" if notes else ""
        accent = self._style("error" if errors else "warn" if notes else "rule")
        middle = dash * max(0, width - cell_len(left) - cell_len(right))
        strip = Strip([Segment(left + middle, self._style("rule")), Segment(right, accent)])
        return strip.adjust_cell_length(width, self.rich_style)

    def _style(self, name: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"log-view--{name}", partial=True)


_CLOCK_CELLS = 10
"""Cells of ` 14:02:10 ` before a line."""


@lru_cache(maxsize=4096)
def _rows_of(text: str, wrap: bool, width: int) -> tuple[str, ...]:
    """The rows of one line, of at most `width` cells each."""
    if wrap:
        return tuple(wrapped_lines(text, width, LONGEST_LINE))
    return (cut(safe_text(text, LONGEST_LINE), width, "~" if ascii_only() else "…"),)
