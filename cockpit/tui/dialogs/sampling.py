"""The dialog of a chat's sampling settings."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from cockpit.talking.settings import setting_text, setting_value
from cockpit.tui.dialogs.frame import DIALOG_CSS
from engines.chatting.lines import BOUNDS, Sampling

MEANINGS = {
    "temperature": "0: the likeliest token each time",
    "top_p": "share of the probability drawn from",
    "top_k": "likeliest tokens drawn from; 0: all",
    "repetition_penalty": "above 1: fewer repetitions",
    "max_new_tokens": "most tokens of an answer",
    "seed": "of the random numbers",
}


class SamplingScreen(ModalScreen["Sampling | None"]):
    """Edits all settings. Enter accepts them if each is allowed; Esc returns None."""

    key_scopes: ClassVar[tuple[str, ...]] = ()
    CSS = (
        DIALOG_CSS.format(name="SamplingScreen")
        + """
    SamplingScreen Horizontal { height: 1; }
    SamplingScreen Horizontal Static { width: 20; }
    SamplingScreen Horizontal Input { width: 12; }
    SamplingScreen Horizontal .meaning { width: 1fr; color: $text-muted; padding-left: 1; text-wrap: nowrap; }
    SamplingScreen #wrong { color: $error; height: auto; min-height: 1; }
    """
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", show=False),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Previous", show=False),
    ]

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self._sampling = sampling

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text("Sampling"), classes="title")
            for name in BOUNDS:
                with Horizontal():
                    yield Static(Text(name))
                    yield Input(setting_text(self._sampling, name), id=name, compact=True, max_length=20)
                    yield Static(Text(MEANINGS[name], no_wrap=True, overflow="ellipsis"), classes="meaning")
            yield Static(id="wrong")
            yield Static(Text("↑↓ move   enter accepts   esc cancels", style="dim"))

    def on_mount(self) -> None:
        self.query_one("#temperature", Input).focus()

    @on(Input.Submitted)
    def _accept(self) -> None:
        values, problems = {}, []
        for name in BOUNDS:
            try:
                values[name] = setting_value(name, self.query_one(f"#{name}", Input).value.strip())
            except ValueError as error:
                problems.append(f"{name} — {error}")
        if problems:
            self.query_one("#wrong", Static).update(Text("\n".join(problems)))
        else:
            self.dismiss(Sampling(**values))  # type: ignore[arg-type]

    def action_cancel(self) -> None:
        self.dismiss(None)
