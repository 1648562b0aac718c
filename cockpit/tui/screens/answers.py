"""The rows of an evaluation: prompt, answer, expected answer, verdicts, and what a baseline answered."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Static
from textual.worker import get_current_worker

from cockpit.talking.answers_target import AnswersTarget
from cockpit.talking.browsing import Browsing, Shown, differences
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.goto import GotoScreen
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.look.theme import palette
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.talk_body import Kind, Passage, TalkBody
from recipes.problems import OperatorError

FIND_KEYS = "enter finds the next row   esc cancels"


def passages_of(shown: Shown) -> list[Passage]:
    """A row as it is read."""
    row, other = shown.row, shown.baseline
    kind: Kind = "good" if row.passed else "bad"
    found = [Passage("name", "prompt"), Passage("prompt", row.prompt)]
    if row.expected:
        found += [Passage("name", "expected"), Passage("note", row.expected)]
    ending = "" if row.ended else ", not ended by the model"
    facts = f"{fmt.counted(row.tokens, 'token')}, {fmt.duration(row.latency_s)}{ending}"
    found += [Passage("name", f"answer: {_word(row.passed, row.unjudged)} ({facts})"), Passage(kind, row.answer)]
    for verdict in row.verdicts:
        reason = f": {verdict.reason}" if verdict.reason else ""
        found.append(Passage("note", f"{verdict.check} {_word(bool(verdict.passed), verdict.passed is None)}{reason}"))
    if other is not None:
        title = f"baseline: {_word(other.passed, other.unjudged)}"
        found += [Passage("name", title), Passage("good" if other.passed else "bad", other.answer)]
    before, what = (
        (other.answer, "from the baseline's answer") if other is not None else (row.expected, "from expected")
    )
    if before and before.strip() != row.answer.strip():
        found += [Passage("name", f"differences {what}"), Passage("note", differences(before, row.answer))]
    return found


def _word(passed: bool, unjudged: bool) -> str:
    return "no verdict" if unjudged else "passed" if passed else "failed"


class AnswersScreen(Screen[None]):
    """The rows of one results file, one at a time.

    Args:
        target: the file, and a baseline.
    """

    key_scopes: ClassVar[tuple[str, ...]] = ("answers",)
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("answers"), Binding("escape,q", "app.back", "Back", show=False)]
    CSS = """
    AnswersScreen { layout: vertical; }
    AnswersScreen > Static { height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; }
    """

    def __init__(self, target: AnswersTarget) -> None:
        super().__init__()
        self._target = target
        self._browsing: Browsing | None = None
        self._rows: list[int] = []
        self._at = 0
        self._chosen = 0
        self._wanted = ""
        self._state = "reading…"

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="filters")
        yield TalkBody(follows=False)
        yield KeyBar("answers")

    def on_mount(self) -> None:
        self.query_one(TalkBody).focus()
        self.run_worker(self._read, thread=True, exit_on_error=False, group="read")
        self._show()

    # ---- reading, in a thread

    def _read(self) -> None:
        worker = get_current_worker()

        def progress(rows: int) -> None:
            if worker.is_cancelled:
                raise OperatorError("the screen was closed")
            self.app.call_from_thread(self._reading, rows)

        try:
            found = Browsing(self._target, progress)
        except OperatorError as error:
            if not worker.is_cancelled:
                self.app.call_from_thread(self._unreadable, error)
        else:
            self.app.call_from_thread(self._take, found)

    def _reading(self, rows: int) -> None:
        self._state = f"reading… {fmt.counted(rows, 'row')}"
        self._show()

    def _unreadable(self, error: OperatorError) -> None:
        self._state = f"{error.message}; {error.hint}"
        self._show()

    def _take(self, found: Browsing) -> None:
        self._browsing = found
        self._rows = found.rows(found.filters[0])
        self._show()

    # ---- keys

    def action_row(self, by: int) -> None:
        """Show the next or the previous row of the filter."""
        self._go(self._at + by)

    def action_edge(self, end: int) -> None:
        """Show the first or the last row."""
        self._go(len(self._rows) - 1 if end else 0)

    def action_filter(self, by: int) -> None:
        """Choose the next filter, and stay at the row if the filter has it."""
        if self._browsing is None:
            return
        now = self._rows[self._at] if self._rows else 0
        self._chosen = (self._chosen + by) % len(self._browsing.filters)
        self._rows = self._browsing.rows(self._browsing.filters[self._chosen])
        self._at = next((place for place, at in enumerate(self._rows) if at >= now), max(0, len(self._rows) - 1))
        self._show()

    def action_goto(self) -> None:
        """Ask for the number of a row."""

        def go(number: int | None) -> None:
            if number:
                place = next((place for place, at in enumerate(self._rows) if at >= number - 1), len(self._rows) - 1)
                self._go(place)

        self.app.push_screen(GotoScreen("Go to row"), go)

    def action_find(self) -> None:
        """Ask for a text, and show the next row of the filter that contains it."""

        def find(text: str | None) -> None:
            if text:
                self._wanted = text
                self._find(self._at, 1)

        body = "Text of the prompt, the answer or the expected answer, in any case."
        self.app.push_screen(AskScreen("Find a row", body, lambda _text: None, self._wanted, FIND_KEYS), find)

    def action_find_next(self, by: int) -> None:
        """Show the next or the previous row with the text."""
        if self._wanted:
            self._find(self._at + by, by)
        else:
            self.action_find()

    def action_scroll_rows(self, by: int) -> None:
        """Scroll the row."""
        body = self.query_one(TalkBody)
        body.scroll_to(y=body.scroll_offset.y + by, animate=False, force=True)

    def _find(self, start: int, by: int) -> None:
        browsing, rows, wanted = self._browsing, self._rows, self._wanted
        if browsing is None:
            return

        def work() -> None:
            worker = get_current_worker()
            try:
                place = browsing.find(rows, start, wanted, by, lambda: worker.is_cancelled)
            except OperatorError as error:
                self.app.call_from_thread(say_error, self, error)
                return
            if not worker.is_cancelled:
                self.app.call_from_thread(self._found, rows, place)

        self.run_worker(work, thread=True, exclusive=True, exit_on_error=False, group="find")

    def _found(self, rows: list[int], place: int | None) -> None:
        if rows is not self._rows:
            return
        if place is None:
            say(self, f"no further row contains {self._wanted!r}", "warning")
        else:
            self._go(place)

    def _go(self, place: int) -> None:
        if not 0 <= place < len(self._rows):
            say(self, "there is no further row")
            return
        self._at = place
        self._show()

    # ---- drawing

    def _show(self) -> None:
        if not self.is_mounted:
            return
        colours = palette(self.app.theme_variables)
        title = Text(safe_text(self._target.file.name, 100), style="bold", no_wrap=True, overflow="ellipsis")
        browsing, passages = self._browsing, [Passage("note", self._state)]
        filters = Text(no_wrap=True, overflow="ellipsis")
        if browsing is not None:
            passages = [Passage("note", "no row of this filter")]
            for number, name in enumerate(browsing.filters):
                count = fmt.whole(len(browsing.rows(name)))
                filters.append(f"{name} {count}  ", f"bold {colours['primary']}" if number == self._chosen else "")
            if self._rows:
                at = self._rows[self._at]
                title.append(f"  row {fmt.whole(at + 1)} of {fmt.whole(len(browsing.index))}", colours["primary"])
                passages = self._passages(browsing, at, title)
        self.query_one("#title", Static).update(title)
        self.query_one("#filters", Static).update(filters)
        self.query_one(TalkBody).show(passages, from_start=True)

    def _passages(self, browsing: Browsing, at: int, title: Text) -> list[Passage]:
        try:
            shown = browsing.shown(at)
        except OperatorError as error:
            return [Passage("error", error.message)]
        title.append(f"  {safe_text(shown.row.name or shown.row.where.rpartition('/')[2], 100)}")
        return passages_of(shown)
