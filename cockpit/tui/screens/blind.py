"""Two answers to the same prompt, without saying which model wrote which, until every pair has a vote."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Static

from cockpit.talking.votes import Votes
from cockpit.text import formatting as fmt
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.talk_body import Passage, TalkBody
from recipes.problems import OperatorError


class BlindScreen(Screen[None]):
    """Asks for one vote after another, and shows the result at the end.

    Args:
        votes: the pairs and their votes.
    """

    key_scopes: ClassVar[tuple[str, ...]] = ("blind",)
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("blind"), Binding("escape,q", "app.back", "Back", show=False)]
    CSS = """
    BlindScreen { layout: vertical; }
    BlindScreen > #title { height: 1; background: $surface; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    BlindScreen > #question { height: 30%; max-height: 10; border-bottom: solid $frame; }
    BlindScreen > Horizontal { height: 1fr; }
    BlindScreen > Horizontal TalkBody { width: 1fr; }
    BlindScreen #right { border-left: solid $frame; }
    """

    def __init__(self, votes: Votes) -> None:
        super().__init__()
        self.votes = votes

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield TalkBody(follows=False, id="question")
        with Horizontal():
            yield TalkBody(follows=False, id="left")
            yield TalkBody(follows=False, id="right")
        yield KeyBar("blind")

    def on_mount(self) -> None:
        self.query_one("#left", TalkBody).focus()
        self._show()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Hide the votes at the end."""
        return not self.votes.finished or action not in {"vote", "undo", "end"}

    # ---- keys

    def action_vote(self, choice: str) -> None:
        """Keep a vote, and show the next pair."""
        self._change(lambda: self.votes.vote(choice))

    def action_undo(self) -> None:
        """Undo the last vote, and show its pair again."""

        def undo() -> None:
            if not self.votes.undo():
                say(self, "there is no vote to undo", "warning")

        self._change(undo)

    def action_end(self) -> None:
        """Ask whether to end the votes."""

        def answered(answer: str | None) -> None:
            if answer == "end":
                self._change(self.votes.end)

        left = len(self.votes.shown) - self.votes.done
        body = (
            f"{fmt.counted(left, 'pair')} without a vote. Afterwards no vote is possible, because the sides are known."
        )
        answers = [Answer("no", "Cancel"), Answer("end", "End")]
        self.app.push_screen(ConfirmScreen("End the votes and show which model wrote which?", body, answers), answered)

    def action_scroll_both(self, by: int) -> None:
        """Scroll both answers."""
        for name in ("#left", "#right"):
            body = self.query_one(name, TalkBody)
            body.scroll_to(y=body.scroll_offset.y + by, animate=False, force=True)

    def _change(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OperatorError as error:
            say_error(self, error)
        self._show()

    # ---- drawing

    def _show(self) -> None:
        votes, pair = self.votes, self.votes.at
        title = f"Which answer is better?  {votes.done} of {len(votes.shown)} votes"
        if pair is None:
            title = f"Result of {fmt.counted(votes.done, 'vote')}"
            rows = votes.count().lines(votes.pairs.sides)
            question, left, right = [Passage("answer", row) for row in rows], [], []
        else:
            question = [
                passage
                for turn in pair.messages
                for passage in (
                    Passage("name", str(turn.get("role"))),
                    Passage("prompt", str(turn.get("content") or "")),
                )
            ]
            left, right = (
                [Passage("name", f"answer {number}"), Passage("answer", text or "(empty)")]
                for number, text in enumerate(votes.sides_of(pair), start=1)
            )
        self.query_one("#title", Static).update(Text(title, style="bold", no_wrap=True, overflow="ellipsis"))
        for name, passages in (("#question", question), ("#left", left), ("#right", right)):
            self.query_one(name, TalkBody).show(passages, from_start=True)
        self.query_one(KeyBar).refresh()
