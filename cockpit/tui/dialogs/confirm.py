"""A question whose first answer is the safe one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.frame import DIALOG_CSS, plain_lines


@dataclass(frozen=True)
class Answer:
    """One button of a question."""

    id: str
    label: str
    danger: bool = False


class ConfirmScreen(ModalScreen[str]):
    """A question. Returns the id of the pressed button; Esc returns the first, which must be the safe one."""

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = DIALOG_CSS.format(name="ConfirmScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "safe", "Cancel", show=False),
        Binding("left,up", "app.focus_previous", "Previous", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, title: str, body: str | Text, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._title = title
        self._body = body
        self._answers = list(answers)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(safe_text(self._title)), classes="title")
            with VerticalScroll(classes="body", can_focus=False):
                yield Static(self._body if isinstance(self._body, Text) else plain_lines(self._body))
            with Horizontal(classes="buttons"):
                for answer in self._answers:
                    variant: Literal["error", "default"] = "error" if answer.danger else "default"
                    yield Button(Text(answer.label), id=answer.id, variant=variant, compact=True)

    def on_mount(self) -> None:
        self.query(Button).first().focus()

    @on(Button.Pressed)
    def _answer(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id or self._answers[0].id)

    def action_safe(self) -> None:
        self.dismiss(self._answers[0].id)
