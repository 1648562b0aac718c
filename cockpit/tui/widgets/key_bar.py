"""The key bar at the bottom of a screen: the keys whose actions are possible now."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import RenderResult
from textual.events import Click
from textual.widget import Widget
from textual.widgets import Input, TextArea

from cockpit.tui.look.keys import Key, footer_keys

PRINTABLE = (
    "question_mark",
    "slash",
    "plus",
    "minus",
    "equals_sign",
    "left_square_bracket",
    "right_square_bracket",
    "space",
)
"""Keys that type text into an input, by Textual's names; letters and digits do, too."""


class KeyBar(Widget):
    """Draws the keys of the given scopes, as many as fit; the help key is always among them.

    A key whose action the screen's `check_action` refuses is not drawn. A click on a key runs its action.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"key-bar--key", "key-bar--label"}
    DEFAULT_CSS = """
    KeyBar { height: 1; dock: bottom; background: $surface; color: $text-muted; }
    KeyBar > .key-bar--key { color: $primary; text-style: bold; }
    KeyBar > .key-bar--label { color: $text-muted; }
    """

    def __init__(self, *scopes: str) -> None:
        super().__init__()
        self.scopes = scopes
        self._drawn: list[str] = []

    def keys_that_fit(self, width: int) -> list[tuple[int, Key]]:
        """Each drawn key with its column."""
        keys = [key for key in footer_keys(*self.scopes, "app") if self._possible(key) and self._shown(key)]
        if not getattr(self.screen, "leads_back", True):
            keys = [key for key in keys if key.id != "app.back"]
        last = [key for key in keys if key.id in {"app.help", "app.back"}]
        first = [key for key in keys if key not in last]
        room = width - 1 - sum(len(self._shown(key)) + len(key.label) + 3 for key in last)
        placed: list[tuple[int, Key]] = []
        x = 1
        for key in first:
            need = len(self._shown(key)) + len(key.label) + 3
            if x + need <= room + 2:
                placed.append((x, key))
                x += need
        for key in last:
            placed.append((x, key))
            x += len(self._shown(key)) + len(key.label) + 3
        return placed

    def update_keys(self) -> None:
        """Redraw if the set of possible keys changed."""
        now = [key.id for _, key in self.keys_that_fit(self.size.width)]
        if now != self._drawn:
            self.refresh()

    def render(self) -> RenderResult:
        key_style = self.get_component_rich_style("key-bar--key", partial=True)
        label_style = self.get_component_rich_style("key-bar--label", partial=True)
        line = Text(no_wrap=True, overflow="crop", end="")
        placed = self.keys_that_fit(self.size.width)
        self._drawn = [key.id for _, key in placed]
        for x, key in placed:
            line.append(" " * (x - len(line)))
            line.append(self._shown(key), key_style)
            line.append(" " + key.label, label_style)
        return line

    async def on_click(self, event: Click) -> None:
        for x, key in self.keys_that_fit(self.size.width):
            if x <= event.x < x + len(self._shown(key)) + 1 + len(key.label):
                await self.app.run_action(key.action, self.screen)

    def on_mount(self) -> None:
        self.watch(self.screen, "focused", self._focus_moved, init=False)

    def _focus_moved(self) -> None:
        self.refresh()

    def _shown(self, key: Key) -> str:
        """The key as it is drawn: in a focused input, the first of its keys that types no text; empty without one."""
        if not isinstance(self.screen.focused, Input | TextArea):
            return key.in_bar
        acting = [name for name in key.keys.split(",") if "+" in name or (len(name) > 1 and name not in PRINTABLE)]
        return acting[0].replace("ctrl+", "^").replace("escape", "esc") if acting else ""

    def _possible(self, key: Key) -> bool:
        target = self.app if key.action.startswith("app.") else self.screen
        name = key.action.removeprefix("app.").partition("(")[0]
        return bool(target.check_action(name, ()))
