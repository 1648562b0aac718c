"""Dialogs: a question whose first answer is the safe one, a choice among words, and a text to read."""

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
from textual.widgets import Button, Input, Static

from cockpit.text.safe_text import safe_text
from cockpit.tui.widgets.line_list import LineList

DIALOG_CSS = """
{name} {{ align: center middle; background: $background 60%; }}
{name} > Vertical {{
    width: 72; max-width: 96%; height: auto; max-height: 90%;
    background: $surface; border: round $border; padding: 0 1;
}}
{name} .title {{ text-style: bold; color: $foreground; height: auto; margin-bottom: 1; }}
{name} .body {{ height: auto; max-height: 14; }}
{name} .body Static {{ height: auto; }}
{name} .buttons {{ height: 1; margin-top: 1; align-horizontal: right; }}
{name} Button {{ margin-left: 2; min-width: 8; }}
"""


@dataclass(frozen=True)
class Answer:
    """One button of a question."""

    id: str
    label: str
    danger: bool = False


class ConfirmScreen(ModalScreen[str]):
    """A question. Answers with the id of the button; Esc answers with the first, which must be the safe one."""

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


class TextScreen(ModalScreen[None]):
    """A text to read, as long as it may be: a difference, a list of problems, a finished run's path."""

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = (
        DIALOG_CSS.format(name="TextScreen")
        + """
    TextScreen > Vertical { width: 100; height: 80%; }
    TextScreen .body { height: 1fr; max-height: 100%; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,ctrl+d", "close", "Close", show=False)]

    def __init__(self, title: str, body: Text) -> None:
        super().__init__()
        self._title = title
        self._body = body

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(safe_text(self._title)), classes="title")
            with VerticalScroll(classes="body"):
                yield Static(self._body)
            yield Static(Text("↑↓ scroll   esc close", style="dim"))

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def action_close(self) -> None:
        self.dismiss()


class _Words(LineList[str]):
    """Words with or without a mark."""

    def __init__(self, words: Sequence[str], marked: set[str] | None) -> None:
        self.marked = marked
        super().__init__(words)

    def key_of(self, item: str) -> str:
        return item

    def draw_item(self, item: str, width: int) -> Text:
        box = "" if self.marked is None else ("[x] " if item in self.marked else "[ ] ")
        return Text(f" {box}{safe_text(item, width)}")


class PickScreen(ModalScreen["list[str] | None"]):
    """Choose one word, or (with `marked`) any of them. Answers None when it was left with Esc."""

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
                yield Input(placeholder="type to narrow", compact=True)
            yield _Words(self._words, self._marked)
            hint = "enter choose   esc cancel" if self._marked is None else "space mark   enter take   esc cancel"
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


def plain_lines(text: str) -> Text:
    """Text of unknown origin over several lines, as it is: no markup, no control characters."""
    return Text("\n".join(safe_text(line) for line in text.split("\n")))
