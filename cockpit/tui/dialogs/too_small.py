"""The message that replaces the screen while the terminal is too small."""

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
    """Covers the screen until the terminal is large enough; runs are not affected."""

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
        """Ignore Esc: only a larger terminal removes the message."""

    def _show(self) -> None:
        width, height = self.app.size
        words = f"terminal too small\n{width}x{height}, minimum {MIN_WIDTH}x{MIN_HEIGHT}\ntraining continues"
        self.query_one(Static).update(Text(words, justify="center"))


def fit_to_terminal(app: App[Any], width: int, height: int) -> None:
    """Show the message while the terminal is too small, and remove it when the terminal is large enough."""
    covered = isinstance(app.screen, TooSmallScreen)
    small = width < MIN_WIDTH or height < MIN_HEIGHT
    if small and not covered:
        app.push_screen(TooSmallScreen())
    elif covered and not small:
        app.pop_screen()
