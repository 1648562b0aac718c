"""A dialog that asks for one value."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.frame import DIALOG_CSS, plain_lines
from recipes.problems import OperatorError

SENDS = "enter sends the request   esc cancels"


class AskScreen(ModalScreen["str | None"]):
    """Asks for a value. Enter returns the text if it is allowed; Esc returns None.

    Args:
        title: what is asked for.
        body: what happens to the run.
        check: raises `OperatorError` for a text that is not allowed.
        value: the text at the beginning.
        keys: what the keys do, below the field.
    """

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = (
        DIALOG_CSS.format(name="AskScreen")
        + """
    AskScreen #wrong { color: $error; height: auto; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Cancel", show=False)]

    def __init__(
        self, title: str, body: str, check: Callable[[str], object], value: str = "", keys: str = SENDS
    ) -> None:
        super().__init__()
        self._title = title
        self.body = body
        self.check = check
        self._value = value
        self._keys = keys

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(safe_text(self._title)), classes="title")
            yield Static(plain_lines(self.body), classes="body")
            yield Input(self._value, max_length=2000, compact=True)
            yield Static(id="wrong")
            yield Static(Text(self._keys, style="dim"))

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    @on(Input.Submitted)
    def _answer(self, event: Input.Submitted) -> None:
        try:
            self.check(event.value)
        except OperatorError as error:
            self.query_one("#wrong", Static).update(plain_lines(error.message))
        else:
            self.dismiss(event.value)

    def action_cancel(self) -> None:
        self.dismiss(None)
