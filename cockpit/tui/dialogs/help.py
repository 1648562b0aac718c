"""The help of a screen: all its keys, from the table that also makes its bindings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.tui.dialogs.frame import DIALOG_CSS
from cockpit.tui.look.keys import SCOPES

TITLES = {
    "app": "Everywhere",
    "run": "Run",
    "replay": "Replay",
    "home": "Home",
    "recipe": "Recipe form",
    "checkpoints": "Checkpoints",
    "lists": "Lists",
}


class HelpScreen(ModalScreen[None]):
    """The keys of some scopes with their help texts."""

    CSS = (
        DIALOG_CSS.format(name="HelpScreen")
        + """
    HelpScreen > Vertical { width: 78; height: 90%; }
    HelpScreen .body { height: 1fr; max-height: 100%; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter", "close", "Close", show=False),
        Binding("j", "scroll(1)", "Down", show=False),
        Binding("k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, scopes: Sequence[str]) -> None:
        super().__init__()
        self._scopes = list(scopes)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text("Keys"), classes="title")
            with VerticalScroll(classes="body"):
                yield Static(keys_table(self._scopes))
            yield Static(Text("Closing a screen never stops a run.   esc close", style="dim"))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_close(self) -> None:
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)


def keys_table(scopes: Sequence[str]) -> Table:
    """Every key with its help text, one heading per scope; unknown scopes are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for scope in scopes:
        keys = SCOPES.get(scope, ())
        if keys:
            table.add_row(Text(TITLES.get(scope, scope.capitalize()), style="bold underline"), Text())
        for key in keys:
            table.add_row(Text(f"  {key.drawn}", style="bold"), Text(key.help))
        if keys:
            table.add_row(Text(), Text())
    return table
