"""Rows of data one after another, as the model will see them: template, text, what is trained, where a row is cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.screen import Screen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Static

from cockpit.forms.rows_target import RowsTarget
from cockpit.headless.row_lines import LINE_END, RowLine, facts, row_lines
from cockpit.planning.row_reader import RowReader
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.goto import GotoScreen
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.look.theme import ascii_only, palette
from cockpit.tui.widgets.key_bar import KeyBar
from engines.look.row_view import RowsAnswer, RowsRequest, RowView
from recipes.problems import OperatorError

SPLITS = ("train", "val", "test")
FIND_KEYS = "enter finds the next row   esc cancels"


class RowBody(ScrollView, can_focus=True):
    """The lines of one row, with a margin that says how much of a line is trained."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "row-body--scored",
        "row-body--content",
        "row-body--template",
        "row-body--cut",
        "row-body--rule",
    }
    DEFAULT_CSS = """
    RowBody { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; padding: 0 1; }
    RowBody > .row-body--scored { color: $success; text-style: bold; }
    RowBody > .row-body--content { color: $foreground; }
    RowBody > .row-body--template { color: $text-muted; }
    RowBody > .row-body--cut { color: $text-disabled; text-style: strike; }
    RowBody > .row-body--rule { color: $error; }
    """

    def __init__(self) -> None:
        super().__init__(id="body")
        self._view: RowView | None = None
        self.lines: list[RowLine] = []

    def show(self, view: RowView | None) -> None:
        """Show a row from its beginning."""
        self._view = view
        self.scroll_to(y=0, animate=False, force=True)
        self._lay_out()

    def on_resize(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        width = max(5, self.scrollable_content_region.width - 2)
        self.lines = [] if self._view is None else row_lines(self._view, width - 1)
        self.virtual_size = Size(self.scrollable_content_region.width, len(self.lines))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        index = y + int(self.scroll_offset.y)
        if not 0 <= index < len(self.lines):
            return Strip.blank(width, self.rich_style)
        line = self.lines[index]
        segments = [Segment(f"{_glyph(line.margin)} ", self._style("scored"))]
        if line.rule:
            segments.append(Segment(_plain(line.rule), self._style("rule")))
        segments += [Segment(_plain(part), self._style(kind)) for part, kind in line.parts]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _style(self, kind: str) -> Style:
        return self.rich_style + self.get_component_rich_style(f"row-body--{kind}", partial=True)


class RowsScreen(Screen[None]):
    """The rows of one split of a stage's data.

    Args:
        target: the stage, the places of its inputs, and a title.
    """

    key_scopes: ClassVar[tuple[str, ...]] = ("rows",)
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings("rows"),
        Binding("escape,q", "app.back", "Back", show=False),
    ]
    CSS = """
    RowsScreen { layout: vertical; }
    RowsScreen > #title { height: 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; padding: 0 1; }
    RowsScreen > #facts { height: auto; max-height: 4; color: $text-muted; padding: 0 1; }
    RowsScreen > #legend { height: 1; background: $surface; padding: 0 1; }
    """

    def __init__(self, target: RowsTarget) -> None:
        super().__init__()
        self._target = target
        self._reader = RowReader(target.job, target.python)
        self._views: list[RowView] = []
        self._part = 0
        self._last = 0
        self._wanted = ""
        self._busy = False

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="facts")
        yield RowBody()
        yield Static(id="legend")
        yield KeyBar("rows")

    def on_mount(self) -> None:
        self.query_one(RowBody).focus()
        self._ask(RowsRequest(1))
        self._show()

    def on_unmount(self) -> None:
        self._reader.close()

    @property
    def view(self) -> RowView | None:
        """The row that is shown, or a part of it."""
        return self._views[self._part] if self._views else None

    # ---- asking the helper, in a thread

    def _ask(self, request: RowsRequest, *, at_end: bool = False) -> None:
        if self._busy:
            return
        self._busy = True
        reader = self._reader

        def worker() -> None:
            try:
                answer = reader.ask(request)
            except OperatorError as error:
                self.app.call_from_thread(self._failed, reader, error)
            else:
                self.app.call_from_thread(self._answered, reader, request, answer, at_end)

        self.run_worker(worker, thread=True, exit_on_error=False, group="rows")

    def _answered(self, reader: RowReader, request: RowsRequest, answer: RowsAnswer, at_end: bool) -> None:
        if reader is not self._reader:
            return
        self._busy = False
        self._last = answer.last or self._last
        if answer.views:
            self._views = answer.views
            self._part = len(answer.views) - 1 if at_end else 0
        elif request.find:
            where = "before" if request.back else "after"
            say(self, f"no row {where} this one contains {request.find!r}", "warning")
        self._show()

    def _failed(self, reader: RowReader, error: OperatorError) -> None:
        if reader is self._reader:
            self._busy = False
            self._show()
            say_error(self, error)

    # ---- keys

    def action_row(self, by: int) -> None:
        """Show the next or a previous row, or the next part of a long text."""
        view = self.view
        if view is None:
            return
        if 0 <= self._part + by < len(self._views):
            self._part += by
            self._show()
        elif view.number + by >= 1 and not (by > 0 and self._last == view.number):
            self._ask(RowsRequest(view.number + by), at_end=by < 0)
        else:
            say(self, "this is the first row" if by < 0 else "this is the last row")

    def action_far(self, by: int) -> None:
        """Skip rows."""
        if self.view is not None:
            self._ask(RowsRequest(max(1, self.view.number + by)))

    def action_edge(self, end: int) -> None:
        """Show the first or the last row."""
        self._ask(RowsRequest(10**12 if end else 1))

    def action_goto(self) -> None:
        """Ask for the number of a row."""

        def go(number: int | None) -> None:
            if number:
                self._ask(RowsRequest(number))

        self.app.push_screen(GotoScreen("Go to row"), go)

    def action_find(self) -> None:
        """Ask for a text, and show the next row that contains it."""

        def find(text: str | None) -> None:
            if text:
                self._wanted = text
                self.action_find_next(1)

        title, body = "Find a row", "Text that the row contains, in any case."
        self.app.push_screen(AskScreen(title, body, lambda _text: None, self._wanted, FIND_KEYS), find)

    def action_find_next(self, by: int) -> None:
        """Show the next or the previous row with the text."""
        if not self._wanted:
            self.action_find()
        elif self.view is not None and self.view.number + by >= 1:
            self._ask(RowsRequest(self.view.number + by, find=self._wanted, back=by < 0))

    def action_split(self) -> None:
        """Show the next split."""
        current = self._target.job.split or SPLITS[0]
        following = SPLITS[(SPLITS.index(current) + 1) % len(SPLITS)]
        self._reader.close()
        job = self._target.job
        job.split = following
        self._reader = RowReader(job, self._target.python)
        self._views, self._part, self._last, self._busy = [], 0, 0, False
        self._ask(RowsRequest(1))
        self._show()

    def action_scroll_rows(self, by: int) -> None:
        """Scroll the row."""
        body = self.query_one(RowBody)
        body.scroll_to(y=body.scroll_offset.y + by, animate=False, force=True)

    # ---- drawing

    def _show(self) -> None:
        view = self.view
        colours = palette(self.app.theme_variables)
        title = Text(safe_text(self._target.title, 100), style="bold")
        if self._target.job.split:
            title.append(f"  {self._target.job.split}")
        if view is not None:
            number = f"row {fmt.whole(view.number)}" + (f" of {fmt.whole(self._last)}" if self._last else "")
            part = f", example {view.part} of {len(self._views)}" if view.part else ""
            title.append(f"  {number}{part}  ", style=colours["primary"])
            inside = view.where.removeprefix(f"{Path(self._target.job.data).parent}{os.sep}")
            title.append(safe_text(inside, 200), style=colours["text-muted"])
        self.query_one("#title", Static).update(title)
        self.query_one("#facts", Static).update(self._facts(view, colours))
        self.query_one("#legend", Static).update(self._legend(colours))
        self.query_one(RowBody).show(view)

    def _facts(self, view: RowView | None, colours: dict[str, str]) -> Text:
        if view is None:
            return Text("reading…" if self._busy else "no row")
        colour = {"kept": "foreground", "raw": "foreground", "cut": "warning"}.get(view.fate, "error")
        return Text("  ".join(facts(view)), style=colours[colour])

    def _legend(self, colours: dict[str, str]) -> Text:
        legend = Text(no_wrap=True)
        legend.append(f"{_glyph('┃')} trained", style=f"bold {colours['success']}")
        legend.append(f"  {_glyph('╎')} partly  ", style=colours["success"])
        legend.append("the row's text  ", style=colours["foreground"])
        legend.append("the template's  ", style=colours["text-muted"])
        legend.append("cut off", style=f"strike {colours['text-disabled']}")
        return legend


def _glyph(margin: str) -> str:
    return {"┃": "#", "╎": ":"}.get(margin, margin) if ascii_only() else margin


def _plain(text: str) -> str:
    return text.replace(LINE_END, "\\n").replace("─", "-") if ascii_only() else text
