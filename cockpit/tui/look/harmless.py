"""The last filter before the terminal: it lets only printable characters through."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

from cockpit.text.safe_text import UNSAFE


class HarmlessLines(LineFilter):
    """Replaces every control, reordering and invisible character with blanks, and removes hyperlinks.

    Widgets make such characters visible with `safe_text`; this filter catches text that was not made safe. Cockpit's
    own text has no hyperlinks, and a link's address would reach the terminal unfiltered.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's name
        """The segments with the same widths and only printable characters."""
        if all(_harmless(segment) for segment in segments):
            return segments
        return [_clean(segment) for segment in segments]


def _harmless(segment: Segment) -> bool:
    text, style, control = segment
    plain = (text.isascii() and text.isprintable()) or UNSAFE.search(text) is None
    return plain and not control and not _linked(style)


def _linked(style: Style | None) -> bool:
    return style is not None and style.link is not None


def _clean(segment: Segment) -> Segment:
    text, style, _control = segment
    clean = UNSAFE.sub(lambda match: " " * cell_len(match[0]), text)
    if style is not None and _linked(style):
        style = style.update_link(None)
    return Segment(clean, style)
