"""A dialog to choose one value, or to mark any number of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.frame import DIALOG_CSS
from cockpit.tui.widgets.line_list import LineList


class _Words(LineList[str]):
    """Values, with or without marks."""

    def __init__(self, words: Sequence[str], marked: set[str] | None) -> None:
        self.marked = marked
        super().__init__(words)

    def key_of(self, item: str) -> str:
        return item

    def draw_item(self, item: str, width: int) -> Text:
        box = "" if self.marked is None else ("[x] " if item in self.marked else "[ ] ")
        return Text(f" {box}{safe_text(item, width)}")


class PickScreen(ModalScreen["list[str] | None"]):
    """Choose one value, or with `marked` any number. Returns the values; None after Esc."""

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = (
        DIALOG_CSS.format(name="PickScreen")
        + """
    PickScreen > Vertical { width: 56; }
    PickScreen LineList { height: auto; max-height: 14; background: $surface; }
    PickScreen Input { margin-bottom: 1; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", show=False),
        Binding("space", "mark", "Mark", show=False),
        Binding("down", "app.focus_next", "Next", show=False),
    ]

    def __init__(
        self, title: str, words: Sequence[str], marked: Sequence[str] | None = None, *, search: bool = False
    ) -> None:
        super().__init__()
        self._title = title
        self._words = list(words)
        self._marked = None if marked is None else set(marked)
        self._search = search

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(safe_text(self._title)), classes="title")
            if self._search:
                yield Input(placeholder="type to filter", compact=True)
            yield _Words(self._words, self._marked)
            hint = "enter choose   esc cancel" if self._marked is None else "space mark   enter accept   esc cancel"
            yield Static(Text(hint, style="dim"))

    def on_mount(self) -> None:
        words = self.query_one(_Words)
        words.styles.height = max(1, min(14, len(self._words)))
        (self.query_one(Input) if self._search else words).focus()

    @on(Input.Changed)
    def _narrow(self, event: Input.Changed) -> None:
        wanted = event.value.strip().lower()
        self.query_one(_Words).set_items([word for word in self._words if wanted in word.lower()])

    @on(Input.Submitted)
    def _take_first(self) -> None:
        self.query_one(_Words).action_choose()

    @on(LineList.Chosen)
    def _take(self) -> None:
        current = self.query_one(_Words).current
        if self._marked is not None:
            self.dismiss([word for word in self._words if word in self._marked])
        elif current is not None:
            self.dismiss([current])

    def action_mark(self) -> None:
        words = self.query_one(_Words)
        if self._marked is not None and words.current is not None:
            self._marked ^= {words.current}
            words.refresh_item(words.current)

    def action_cancel(self) -> None:
        self.dismiss(None)
