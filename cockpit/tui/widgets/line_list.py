"""A list drawn line by line: drawing costs the same for ten items and for two thousand."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from cockpit.text.safe_text import safe_text

Item = TypeVar("Item")


class LineList(ScrollView, Generic[Item], can_focus=True):
    """Items with a cursor. A subclass defines how an item is drawn, its key, and whether it is selectable.

    The cursor follows its item's key when the items change, so new items at the top do not move it to another item.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "edge(0)", "First", show=False),
        Binding("end", "edge(1)", "Last", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "line-list--cursor",
        "line-list--cursor-blurred",
        "line-list--header",
    }
    DEFAULT_CSS = """
    LineList { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }
    LineList > .line-list--cursor { background: $block-cursor-background; color: $block-cursor-foreground; }
    LineList > .line-list--cursor-blurred { background: $panel; }
    LineList > .line-list--header { color: $text-muted; }
    """

    class Moved(Message):
        """The cursor moved to another item."""

        def __init__(self, sender: LineList[Any]) -> None:
            super().__init__()
            self.sender = sender

        @property
        def control(self) -> LineList[Any]:
            return self.sender

    class Chosen(Moved):
        """Enter, or a second click, on the item under the cursor."""

    empty_message = "no items"
    has_header = False

    def __init__(self, items: Sequence[Item] = (), *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._items: list[Item] = list(items)
        self._cursor = self._nearest(0, 1)

    # For subclasses

    def draw_item(self, item: Item, width: int) -> Text:
        """One line of at most `width` cells; untrusted text must be made safe."""
        return Text(safe_text(str(item), width))

    def draw_header(self, width: int) -> Text:  # noqa: ARG002 - for subclasses with a header
        """The fixed first line, when `has_header`."""
        return Text("")

    def key_of(self, item: Item) -> Hashable:
        """The key that identifies an item when the items are replaced."""
        return id(item)

    def selectable(self, item: Item) -> bool:  # noqa: ARG002 - for subclasses with headings
        """Whether the cursor may be on the item; False for headings."""
        return True

    # Content and cursor

    @property
    def items(self) -> Sequence[Item]:
        return self._items

    @property
    def cursor(self) -> int:
        return self._cursor

    @property
    def current(self) -> Item | None:
        """The item under the cursor."""
        if 0 <= self._cursor < len(self._items) and self.selectable(self._items[self._cursor]):
            return self._items[self._cursor]
        return None

    def set_items(self, items: Sequence[Item]) -> None:
        """Replace the items; the cursor stays on its item, or at its index when the item is missing."""
        before = self.current
        key = None if before is None else self.key_of(before)
        old, self._items = self._items, list(items)
        place = None
        if before is not None:
            place = next((i for i, item in enumerate(self._items) if self.key_of(item) == key), None)
        self._cursor = self._nearest(min(self._cursor, len(self._items) - 1), 1) if place is None else place
        self._resize()
        self._reveal()
        if list(map(self.key_of, old)) == list(map(self.key_of, self._items)):
            for index, (was, item) in enumerate(zip(old, self._items, strict=True)):
                if was != item:
                    self._refresh_line(index)
        else:
            self.refresh()
        now = self.current
        if (None if now is None else self.key_of(now)) != key:
            self.post_message(self.Moved(self))

    def select(self, key: Hashable) -> bool:
        """Put the cursor on the item with this key; returns whether there is one."""
        for index, item in enumerate(self._items):
            if self.key_of(item) == key and self.selectable(item):
                self._go(index)
                return True
        return False

    def refresh_item(self, key: Hashable) -> None:
        """Redraw one item if it is visible."""
        for index, item in enumerate(self._items):
            if self.key_of(item) == key:
                self._refresh_line(index)
                return

    def _nearest(self, index: int, step: int) -> int:
        """The nearest selectable index from `index` in one direction, else in the other, else -1."""
        for direction in (step, -step):
            place = max(0, index)
            while 0 <= place < len(self._items):
                if self.selectable(self._items[place]):
                    return place
                place += direction
        return -1

    def _go(self, index: int) -> None:
        if index == self._cursor or not self._items:
            return
        before, self._cursor = self._cursor, index
        self._refresh_line(before)
        self._refresh_line(index)
        self._reveal()
        self.post_message(self.Moved(self))

    def _reveal(self) -> None:
        """Scroll as little as possible to show the cursor."""
        height = self.scrollable_content_region.height - self.has_header
        if height <= 0 or self._cursor < 0:
            return
        top = int(self.scroll_offset.y)
        # A heading directly above the first item stays visible with it.
        first = 0 if self._nearest(0, 1) == self._cursor else self._cursor
        wanted = min(max(top, self._cursor - height + 1), first)
        if wanted != top:
            self.scroll_to(y=wanted, animate=False, force=True)

    def action_move(self, by: int) -> None:
        index = self._cursor + by
        while 0 <= index < len(self._items):
            if self.selectable(self._items[index]):
                self._go(index)
                return
            index += by

    def action_page(self, by: int) -> None:
        rows = max(1, self.size.height - 1 - self.has_header)
        target = min(len(self._items) - 1, max(0, self._cursor + by * rows))
        self._go(self._nearest(target, by))

    def action_edge(self, end: int) -> None:
        self._go(self._nearest(len(self._items) - 1 if end else 0, -1 if end else 1))

    def action_choose(self) -> None:
        if self.current is not None:
            self.post_message(self.Chosen(self))

    def on_click(self, event: events.Click) -> None:
        if event.y == 0 and self.has_header:
            return
        index = int(event.y + self.scroll_offset.y) - self.has_header
        if not (0 <= index < len(self._items) and self.selectable(self._items[index])):
            return
        if index == self._cursor and event.chain > 1:
            self.action_choose()
        else:
            self._go(index)

    # Drawing

    def on_mount(self) -> None:
        self._resize()

    def on_resize(self) -> None:
        self._resize()
        self._reveal()

    def _resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._items) + self.has_header)

    def _refresh_line(self, index: int) -> None:
        y = index + self.has_header - int(self.scroll_offset.y)
        if 0 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def on_focus(self) -> None:
        self._refresh_line(self._cursor)

    def on_blur(self) -> None:
        self._refresh_line(self._cursor)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        base = self.rich_style
        if self.has_header and y == 0:
            header = self.get_component_rich_style("line-list--header")
            return self._strip(self.draw_header(width), width, base + header)
        index = y + int(self.scroll_offset.y) - self.has_header
        if not self._items and y == int(self.has_header):
            return self._strip(Text(f" {self.empty_message}", style="dim"), width, base)
        if not 0 <= index < len(self._items):
            return Strip.blank(width, base)
        text = self.draw_item(self._items[index], width)
        if index == self._cursor:
            name = "line-list--cursor" if self.has_focus else "line-list--cursor-blurred"
            return self._strip(text, width, base, over=self.get_component_rich_style(name))
        return self._strip(text, width, base)

    def _strip(self, text: Text, width: int, style: Style, over: Style | None = None) -> Strip:
        text.no_wrap = True
        strip = Strip(text.render(self.app.console)).adjust_cell_length(width).apply_style(style)
        if over is None:
            return strip
        # The cursor's colours replace the item's colours, so that the line is readable in every theme.
        return Strip([segment._replace(style=(segment.style or style) + over) for segment in strip])
