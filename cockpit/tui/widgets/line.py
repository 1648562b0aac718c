"""Lines of text that are sent to the terminal only when they changed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.text import Text
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget


class Lines(Widget):
    """Shows lines of text and repaints only changed lines. Untrusted text must already be safe."""

    DEFAULT_CSS = "Lines { height: 1; }"

    class Resized(Message):
        """The widget's size changed: the screen may show more or fewer lines."""

        def __init__(self, lines: Lines) -> None:
            super().__init__()
            self.lines = lines

        @property
        def control(self) -> Lines:
            """The widget, for selectors."""
            return self.lines

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, classes=classes)
        self._lines: list[Text] = []

    def show(self, lines: Sequence[Text]) -> None:
        """Show these lines from the top."""
        before, self._lines = self._lines, list(lines)
        for y in range(max(len(before), len(lines))):
            old = before[y] if y < len(before) else None
            new = lines[y] if y < len(lines) else None
            if old is None or new is None or old != new or old.spans != new.spans:
                self.refresh(Region(0, y, self.size.width, 1))

    def on_resize(self) -> None:
        self.post_message(self.Resized(self))

    def render_line(self, y: int) -> Strip:
        width, style = self.size.width, self.rich_style
        if y >= len(self._lines):
            return Strip.blank(width, style)
        text = self._lines[y].copy()
        text.no_wrap, text.end = True, ""
        segments: list[Segment] = list(text.render(self.app.console))
        return Strip(segments).adjust_cell_length(width).apply_style(style)
