"""One field of a recipe on one line: its label, its editor and its allowed values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from cockpit.forms.rows import Row
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import ascii_only, palette

NO_VALUE = "none"
"""What an editor shows for a field without a value."""
LABEL_CELLS = 27
"""Cells of a key beside the mark of a change or a problem, on a narrow screen."""
MOVES: list[BindingType] = [
    Binding("up", "row(-1)", "Previous field", show=False),
    Binding("down", "row(1)", "Next field", show=False),
]


class FieldRow(Horizontal):
    """A row of the form. Posts `Edited` after every change and `Entered` when it gets the focus."""

    SCOPED_CSS: ClassVar[bool] = False  # a scope would precede ".-wide", which is a class of the screen
    DEFAULT_CSS = """
    FieldRow { height: 1; }
    FieldRow:focus-within { background: $panel; }
    FieldRow > .label { width: 29; padding: 0 1 0 0; text-wrap: nowrap; text-overflow: ellipsis; }
    FieldRow > .note { width: 1fr; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    FieldRow > Input, FieldRow > ChoiceBox { width: 22; }
    FieldRow > Input { background: $surface; color: $foreground; height: 1; border: none; padding: 0; }
    FieldRow > Input:focus { background: $background; }
    FieldRow > Input.long { width: 34; }
    .-wide FieldRow > .label { width: 31; }
    .-wide FieldRow > Input, .-wide FieldRow > ChoiceBox { width: 26; }
    .-wide FieldRow > Input.long { width: 52; }
    """

    class Edited(Message):
        """The row's text changed; an empty text removes the key from the recipe."""

        def __init__(self, key: str, text: str) -> None:
            super().__init__()
            self.key = key
            self.text = text

    class Entered(Message):
        """The row has the focus."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Asked(Message):
        """The operator wants to choose from the values that fit."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Moved(Message):
        """The operator moves up or down to another row."""

        def __init__(self, key: str, by: int) -> None:
            super().__init__()
            self.key = key
            self.by = by

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row

    def compose(self) -> ComposeResult:
        yield Static(self._label(), classes="label")
        yield self._editor()
        yield Static(self._note(), classes="note")

    @property
    def editor(self) -> Widget:
        """The widget that gets the row's focus."""
        return self.query_one("Input, ChoiceBox")

    def show(self, row: Row, *, keep_text: bool) -> None:
        """Show this row; `keep_text` keeps the text in the editor."""
        self.row = row
        if not self.is_mounted:
            return
        self.query_one(".label", Static).update(self._label())
        self.query_one(".note", Static).update(self._note())
        editor = self.editor
        if isinstance(editor, ChoiceBox):
            editor.show(row.text, own=row.origin == "stage")
        elif isinstance(editor, Input):
            editor.placeholder = _placeholder(row)
            text = row.text if row.origin == "stage" else ""
            if not keep_text and editor.value != text:
                with self.prevent(Input.Changed):
                    editor.value = text

    def _editor(self) -> Widget:
        row = self.row
        if row.spec.kind in {"bool", "choice"} or (row.spec.kind == "int" and row.spec.choices):
            words = ("false", "true") if row.spec.kind == "bool" else tuple(str(c) for c in row.spec.choices)
            return ChoiceBox(row.key, words, row.text, own=row.origin == "stage")
        long = row.spec.kind in {"list", "numbers", "integers", "tables", "map"} or (
            row.spec.kind == "str" and not row.spec.bounds.pattern
        )
        value = row.text if row.origin == "stage" else ""
        return FieldInput(row.key, value, _placeholder(row), "long" if long else "")

    def _label(self) -> Text:
        colours = palette(self.app.theme_variables)
        row = self.row
        mark, colour = ("!", "error") if row.problems else (("*", "accent") if row.was is not None else (" ", ""))
        text = Text(mark, colours.get(colour, ""), no_wrap=True)
        text.append(_label_of(row.key), colours["error"] if row.problems else "")
        return text

    def _note(self) -> Text:
        colours = palette(self.app.theme_variables)
        row = self.row
        text = Text(" ", no_wrap=True, overflow="ellipsis")
        if row.was is not None:
            text.append(f"was {safe_text(row.was, 40) or 'not set'}  ", colours["accent"])
        if row.problems:
            text.append(safe_text(row.problems[0].allowed or row.problems[0].message, 80), colours["error"])
            return text
        words = [row.spec.bounds.words().replace(" and ", " "), row.spec.unit or ""]
        if row.origin == "defaults":
            words.insert(0, "from defaults")
        text.append(" ".join(word for word in words if word), colours["text-muted"])
        return text

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self.row.key, event.value))

    def on_descendant_focus(self) -> None:
        self.post_message(self.Entered(self.row.key))


class FieldInput(Input):
    """A typed value. Enter opens the list of values that fit, or moves to the next row."""

    BINDINGS: ClassVar[list[BindingType]] = [*MOVES, Binding("enter", "ask", "Choose", show=False)]

    def __init__(self, key: str, value: str, placeholder: str, classes: str) -> None:
        super().__init__(value, placeholder=placeholder, compact=True, select_on_focus=False, classes=classes)
        self.key = key

    def action_row(self, by: int) -> None:
        self.post_message(FieldRow.Moved(self.key, by))

    def action_ask(self) -> None:
        self.post_message(FieldRow.Asked(self.key))


def _label_of(key: str) -> str:
    """The key; of a long one in a table, the end: its rows in the form are neighbours, and their ends differ."""
    return key if len(key) <= LABEL_CELLS else f"{'..' if ascii_only() else '…'}{key.rpartition('.')[2]}"


class ChoiceBox(Static, can_focus=True):
    """One of a few values: left and right step through them, backspace removes the key."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
        Binding("left", "step(-1)", "Previous choice", show=False),
        Binding("right,space", "step(1)", "Next choice", show=False),
        Binding("backspace,delete", "clear", "Default", show=False),
        Binding("enter", "ask", "Choose", show=False),
    ]

    def __init__(self, key: str, words: Sequence[str], text: str, *, own: bool) -> None:
        super().__init__()
        self.key = key
        self._words = list(words)
        self._text = text
        self._own = own

    def on_mount(self) -> None:
        self.show(self._text, own=self._own)

    def show(self, text: str, *, own: bool) -> None:
        """Show this value, or `NO_VALUE`; it is dim when the stage does not set it."""
        self._text, self._own = text, own
        style = "" if own else palette(self.app.theme_variables)["text-muted"]
        left, right = ("<", ">") if ascii_only() else ("‹", "›")  # noqa: RUF001 - drawn, not read
        self.update(Text(f"{left} {safe_text(text, 40) or NO_VALUE} {right}", style, no_wrap=True))

    def action_step(self, by: int) -> None:
        place = self._words.index(self._text) + by if self._text in self._words else 0
        self.post_message(FieldRow.Edited(self.key, self._words[place % len(self._words)]))

    def action_clear(self) -> None:
        self.post_message(FieldRow.Edited(self.key, ""))

    def action_row(self, by: int) -> None:
        self.post_message(FieldRow.Moved(self.key, by))

    def action_ask(self) -> None:
        self.post_message(FieldRow.Asked(self.key))

    def on_click(self) -> None:
        if self.has_focus:
            self.action_step(1)


def _placeholder(row: Row) -> str:
    """The text of an empty editor: the default, `required` or `none`."""
    if row.origin in {"default", "defaults"}:
        return safe_text(row.text, 60)
    return "required" if row.spec.required else NO_VALUE
