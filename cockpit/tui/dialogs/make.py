"""The dialogs before a merge and an export, with the disk and memory that are needed and free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from cockpit.one_stage.recipe import Input
from cockpit.one_stage.sources import Source
from cockpit.planning.models import Need
from cockpit.text import formatting
from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.frame import DIALOG_CSS
from cockpit.tui.look.theme import palette
from cockpit.tui.widgets.line_list import LineList
from cockpit.tui.widgets.preview import Pen
from exporters.gguf.quant_types import FilePlan
from recipes.file_types import FILE_TYPES

LEAST_CHOICES = 3
"""Rows of the list of choices on the smallest screen; the list scrolls."""
MEANINGS = {
    "base": "same as the base model",
    "float32": "4 bytes per weight",
    "bfloat16": "2 bytes per weight",
    "float16": "2 bytes per weight",
}


class _Choices(LineList[str]):
    """Choices with a mark and a remark."""

    def __init__(self, words: Sequence[str], marked: set[str], remarks: dict[str, str], single: bool) -> None:
        self.marked = marked
        self._remarks = remarks
        self._single = single
        super().__init__(words)

    def key_of(self, item: str) -> str:
        return item

    def draw_item(self, item: str, width: int) -> Text:  # noqa: ARG002 - the list's interface
        marked = item in self.marked
        box = ("(•) " if marked else "( ) ") if self._single else ("[x] " if marked else "[ ] ")
        line = Text(f" {box}{safe_text(item, 20):<12}")
        line.append(safe_text(self._remarks.get(item, ""), 60), palette(self.app.theme_variables)["text-muted"])
        return line


class MakeScreen(ModalScreen["list[str] | None"]):
    """Choose types, see the disk and memory they need, start. Returns the marked choices, or None.

    Args:
        title: what is made, and from what.
        lines: facts above the choices.
        words: the choices.
        chosen: the choices that are marked at first.
        remarks: a short text after each choice.
        need_of: disk and memory that the marked choices need; called after every change.
        start: the label of the button that starts it.
        single: exactly one choice is marked; otherwise at least one.
    """

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = (
        DIALOG_CSS.format(name="MakeScreen")
        + """
    MakeScreen LineList { background: $surface; }
    MakeScreen .facts { height: auto; color: $text-muted; margin-bottom: 1; }
    MakeScreen #need { height: auto; margin-top: 1; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", show=False),
        Binding("space", "mark", "Mark", show=False),
    ]

    def __init__(
        self,
        title: str,
        lines: Sequence[str],
        words: Sequence[str],
        chosen: Sequence[str],
        remarks: dict[str, str],
        need_of: Callable[[list[str]], Need],
        start: str,
        *,
        single: bool,
    ) -> None:
        super().__init__()
        self._title = title
        self._lines = list(lines)
        self._words = list(words)
        self._marked = set(chosen)
        self._remarks = remarks
        self._need_of = need_of
        self._start = start
        self._single = single

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(safe_text(self._title)), classes="title")
            yield Static(Text("\n".join(safe_text(line, 300) for line in self._lines)), classes="facts")
            yield _Choices(self._words, self._marked, self._remarks, self._single)
            yield Static(id="need")
            with Horizontal(classes="buttons"):
                yield Button(Text("Cancel"), id="cancel", compact=True)
                yield Button(Text(self._start), id="start", compact=True)
            yield Static(Text("↑↓ move   space mark   tab buttons   esc cancel", style="dim"))

    def on_mount(self) -> None:
        self.query_one(_Choices).focus()
        self._show_need()
        self.screen_layout_refresh_signal.subscribe(self, self._fit)

    def _fit(self, _screen: object) -> None:
        """Give the choices the remaining height: buttons and figures are always on the screen."""
        choices, dialog = self.query_one(_Choices), self.query_one(Vertical)
        margins = [child.styles.margin for child in dialog.children]
        around = sum(margin.top + margin.bottom for margin in margins) + dialog.gutter.height
        around += sum(child.size.height for child in dialog.children if child is not choices)
        room = self.app.size.height * 9 // 10 - around
        choices.styles.height = min(len(self._words), max(LEAST_CHOICES, room))

    @property
    def marked(self) -> list[str]:
        """The marked choices, in the order of the list."""
        return [word for word in self._words if word in self._marked]

    def action_mark(self) -> None:
        choices = self.query_one(_Choices)
        word = choices.current
        if word is None or not choices.has_focus:
            return
        if self._single:
            self._marked.clear()
        self._marked ^= {word}
        choices.refresh()
        self._show_need()

    @on(LineList.Chosen)
    def _to_the_button(self) -> None:
        if self._single:
            self.action_mark()
        self.query_one("#start", Button).focus()

    def _show_need(self) -> None:
        need = self._need_of(self.marked)
        self.query_one("#need", Static).update(need_text(need, palette(self.app.theme_variables)))
        button = self.query_one("#start", Button)
        button.disabled = not self._marked or "disk" in need.short_of

    @on(Button.Pressed, "#start")
    def _go(self) -> None:
        self.dismiss(self.marked)

    @on(Button.Pressed, "#cancel")
    def action_cancel(self) -> None:
        self.dismiss(None)


def need_text(need: Need, colours: dict[str, str]) -> Text:
    """Two lines, `disk about 60 GiB of 1.2 TiB free ✓` and `memory about 131 GiB of 119 GiB free ✗ too little`."""
    pen = Pen(colours)
    short = need.short_of
    for name, takes, free in (
        ("disk", need.disk_bytes, need.disk_free_bytes),
        ("memory", need.ram_bytes, need.ram_available_bytes),
    ):
        if pen.text:
            pen.line()
        needs = f"about {formatting.size(takes)} of" if takes is not None else "need unknown,"
        pen.write(f"{name} {needs} {formatting.size(free)} free", "error" if name in short else "")
        pen.write(
            " ✗ too little" if name in short else (" ✓" if takes is not None else ""),
            "error" if name in short else "success",
        )
    return pen.text


def merge_facts(source: Source, base: Input) -> list[str]:
    """The facts above the choices of a merge."""
    return [
        f"adapter  {source.path}",
        f"base     {base.text}",
        "Starts a new run with one stage. This run is its parent and is kept.",
    ]


def export_facts(source: Source, base: Input | None = None) -> list[str]:
    """The facts above the choices of an export."""
    adapted = [f"model  {base.text}", f"adapter  {source.path}, merged during the export"] if base else []
    return [
        *(adapted or [f"model  {source.path}"]),
        "Each file is compared with the model. Starts a new run; this run is its parent and is kept.",
    ]


def plan_words(plan: FilePlan) -> str:
    """A file type's size for this model: `  4.6 MiB  4.85 b/w`, with the number of too narrow tensors."""
    words = f"{formatting.size(plan.bytes):>9}  {formatting.bits_per_weight(plan.bits_per_weight)} b/w"
    if plan.fallbacks:
        words += f"  {len(plan.fallbacks)} of {len(plan.choices)} tensors too narrow"
    if FILE_TYPES[plan.file_type].ternary:
        return words + "  ternary models only"
    return words + "  with importance matrix" if plan.weighted else words
