"""A dialog that shows a text of any length."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.frame import DIALOG_CSS


class TextScreen(ModalScreen[None]):
    """Shows a text that scrolls, such as a form's unsaved changes; `at_end` shows its end first."""

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = (
        DIALOG_CSS.format(name="TextScreen")
        + """
    TextScreen > Vertical { width: 100; height: 80%; }
    TextScreen .body { height: 1fr; max-height: 100%; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,ctrl+d", "close", "Close", show=False)]

    def __init__(self, title: str, body: Text, *, at_end: bool = False) -> None:
        super().__init__()
        self._at_end = at_end
        self._title = title
        self._body = body

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(safe_text(self._title)), classes="title")
            with VerticalScroll(classes="body"):
                yield Static(self._body)
            yield Static(Text("↑↓ pgup pgdn home end scroll   esc close", style="dim"))

    def on_mount(self) -> None:
        body = self.query_one(VerticalScroll)
        body.focus()
        if self._at_end:
            self.call_after_refresh(self._keep_end, body)

    def _keep_end(self, body: VerticalScroll) -> None:
        """Stay at the end, also after the terminal's size changed; a text that fits stays at the top."""
        if body.max_scroll_y > 0:
            body.anchor()

    def action_close(self) -> None:
        self.dismiss()
