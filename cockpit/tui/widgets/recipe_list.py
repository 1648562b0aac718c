"""The list of recipes, grouped by origin; one with problems is marked, and the preview shows them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rich.text import Text

from cockpit.forms.shelf import RecipeEntry
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import ascii_only, palette
from cockpit.tui.widgets.line_list import LineList


class RecipeList(LineList["RecipeEntry | str"]):
    """Recipes under headings. The cursor skips headings."""

    empty_message = "no recipes"

    def show(self, entries: Sequence[RecipeEntry]) -> None:
        """Show these recipes, with a heading before each group."""
        items: list[RecipeEntry | str] = []
        for entry in entries:
            if not any(isinstance(item, RecipeEntry) and item.group == entry.group for item in items):
                items.append(entry.group)
            items.append(entry)
        self.set_items(items)

    @property
    def entry(self) -> RecipeEntry | None:
        """The selected recipe."""
        current = self.current
        return current if isinstance(current, RecipeEntry) else None

    def key_of(self, item: RecipeEntry | str) -> Hashable:
        return item if isinstance(item, str) else item.path

    def selectable(self, item: RecipeEntry | str) -> bool:
        return isinstance(item, RecipeEntry)

    def draw_item(self, item: RecipeEntry | str, width: int) -> Text:
        if isinstance(item, str):
            return Text(f" {item}", style=palette(self.app.theme_variables)["text-muted"])
        text = Text(f"   {safe_text(item.path.stem, max(4, width - 5))}")
        if item.hides_shipped:
            text.append(" (copy)", palette(self.app.theme_variables)["text-muted"])
        if item.problems:
            text.append(" ", "")
            text.append("!" if ascii_only() else "✗", palette(self.app.theme_variables)["error"])
        return text
