"""A dialog that asks for the number of a step or a row."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static


class GotoScreen(ModalScreen["int | None"]):
    """Asks for a number, of a step by default. Returns the number, or None."""

    CSS = """
    GotoScreen { align: center middle; background: $background 60%; }
    GotoScreen > Vertical { width: 40; height: auto; background: $surface; border: round $border; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", show=False)]

    def __init__(self, title: str = "Go to step") -> None:
        super().__init__()
        self._title = title

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._title, markup=False)
            yield Input(type="integer", max_length=12, compact=True)

    @on(Input.Submitted)
    def _answer(self, event: Input.Submitted) -> None:
        self.dismiss(int(event.value) if event.value.strip().isdigit() else None)

    def action_cancel(self) -> None:
        self.dismiss(None)
