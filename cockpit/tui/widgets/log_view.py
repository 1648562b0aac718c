"""The log of a run: draws only visible lines, and follows new lines until the operator scrolls up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cockpit.runs.log_lines import LogLine
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import ascii_only

LEVELS = ("quiet", "info", "good", "warn", "error")


class LogView(ScrollView, can_focus=True):
    """Log lines with a title row that counts warnings and errors."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"log-view--{level}" for level in LEVELS),
        "log-view--time",
        "log-view--rule",
    }
    DEFAULT_CSS = """
    LogView {
        height: 5; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0;
        overflow-x: hidden; background: $background;
    }
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
        self._lines: Sequence[LogLine] = ()
        self._drawn: list[object] = []
        self.title = "log"

    def show(self, lines: Sequence[LogLine], title: str = "log") -> None:
        """Show these lines, oldest first; the view follows new lines if it was at the end."""
        follow = self.follows
        grown = len(lines) != len(self._lines)
        self._lines, self.title = lines, title
        if grown:
            self.virtual_size = Size(self.scrollable_content_region.width, len(lines) + 1)
        if follow and self.max_scroll_y != self.scroll_offset.y:
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True, force=True)
        self._repaint()

    @property
    def follows(self) -> bool:
        """Whether the newest line is in view."""
        return self.scroll_offset.y >= self.max_scroll_y - 0.5

    def _visible(self) -> list[object]:
        top = int(self.scroll_offset.y)
        rows = max(0, self.size.height - 1)
        counts = [sum(1 for line in self._lines if line.level == level) for level in ("warn", "error")]
        return [
            (self.title, counts, self.follows),
            *(self._lines[top + y] if top + y < len(self._lines) else None for y in range(rows)),
        ]

    def _repaint(self) -> None:
        now = self._visible()
        if len(now) != len(self._drawn):
            self.refresh()
        else:
            for y, (old, new) in enumerate(zip(self._drawn, now, strict=True)):
                if old != new:
                    self.refresh(Region(0, y, self.size.width, 1))
        self._drawn = now

    def on_resize(self) -> None:
        self._drawn = []
        if self.max_scroll_y:
            self.call_after_refresh(self.scroll_to, y=self.max_scroll_y, animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width or self.size.width
        if y == 0:
            return self._rule(width)
        index = int(self.scroll_offset.y) + y - 1
        if index >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        line = self._lines[index]
        segments = [
            Segment(f" {fmt.clock(line.t)} ", self._style("time")),
            Segment(safe_text(line.text, 1000), self._style(line.level)),
        ]
        strip = Strip(segments)
        if strip.cell_length > width:
            strip = Strip([*strip.crop(0, width - 1), Segment("~" if ascii_only() else "…", self._style("time"))])
        return strip.adjust_cell_length(width, self.rich_style)

    def _rule(self, width: int) -> Strip:
        warnings, errors = (sum(1 for line in self._lines if line.level == level) for level in ("warn", "error"))
        notes = [] if self.follows else ["pgdn ▼ for newer lines"]
        notes += [fmt.counted(warnings, "warning")] if warnings else []
        notes += [fmt.counted(errors, "error")] if errors else []
        dash = "-" if ascii_only() else "─"
        right = f" {' · '.join(notes)} {dash}" if notes else ""
        if ascii_only():
            right = right.replace("▼ ", "").replace("·", ",")
        left = f"{dash} {safe_text(self.title, 60)} "
        style = self._style("rule")
        accent = self._style("error" if errors else "warn" if warnings else "rule")
        middle = dash * max(0, width - len(left) - len(right))
        return Strip([Segment(left + middle, style), Segment(right, accent)]).adjust_cell_length(width, self.rich_style)

    def _style(self, name: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"log-view--{name}", partial=True)
