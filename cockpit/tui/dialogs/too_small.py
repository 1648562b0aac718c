"""What a terminal that is too small shows instead of a broken screen."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

MIN_WIDTH, MIN_HEIGHT = 60, 20


class TooSmallScreen(ModalScreen[None]):
    """Covers everything until the terminal is large enough; runs do not care."""

    CSS = """
    TooSmallScreen { align: center middle; background: $background; }
    TooSmallScreen Static { width: auto; height: auto; text-align: center; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "stay", "", show=False)]

    def compose(self) -> ComposeResult:
        yield Static()

    def on_mount(self) -> None:
        self._show()

    def on_resize(self, _event: events.Resize) -> None:
        self._show()

    def action_stay(self) -> None:
        """Esc leads nowhere from here: only a larger terminal does."""

    def _show(self) -> None:
        width, height = self.app.size
        words = f"terminal too small\n{width}x{height}, at least {MIN_WIDTH}x{MIN_HEIGHT}\ntraining continues"
        self.query_one(Static).update(Text(words, justify="center"))


def fit_to_terminal(app: App[Any], width: int, height: int) -> None:
    """Put the message over the screen when the terminal is too small, and take it away when it no longer is."""
    covered = isinstance(app.screen, TooSmallScreen)
    small = width < MIN_WIDTH or height < MIN_HEIGHT
    if small and not covered:
        app.push_screen(TooSmallScreen())
    elif covered and not small:
        app.pop_screen()
