"""The application that shows Cockpit's screens.

The application owns no run: runs are processes of their own and continue when a screen closes or crashes. `open_home`,
`open_run`, `open_replay`, `open_recipe`, `open_rows`, `open_chat` and `open_checkpoints` open the screens; each imports
its screen on first use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import RenderableType
from textual._compositor import ChopsUpdate
from textual.app import App
from textual.binding import BindingType
from textual.command import Provider
from textual.events import Resize
from textual.filter import LineFilter
from textual.screen import Screen

from cockpit.tui.look import hang_up
from cockpit.tui.look.frugal import TerminalCells
from cockpit.tui.look.harmless import HarmlessLines
from cockpit.tui.look.keys import bindings, scopes_of
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.look.theme import ANSI_VARIABLES, THEMES, chosen_theme
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import ExitCode, Verb
from recipes.problems import OperatorError

if TYPE_CHECKING:
    from cockpit.forms.rows_target import RowsTarget
    from cockpit.planning.stages import Plan
    from cockpit.talking.answers_target import AnswersTarget
    from cockpit.talking.target import ChatTarget
    from cockpit.talking.votes import Votes
    from recipes.load import LoadedRecipe


def key_commands() -> type[Provider]:
    """The palette's provider, imported when the palette is first opened."""
    from cockpit.tui.dialogs.palette import KeyCommands

    return KeyCommands


class CockpitApp(App[None]):
    """Home, recipe forms, runs, replays and checkpoints.

    Args:
        runs_root: the folder that contains the runs.
        open_run: a run directory to open first.
        replay: a run directory or journal file to replay first.
        speed: speed of that replay as a multiple of real time; None for the default.
        rows: rows of data to show first.
        chat: models to talk with first.
        votes: answers to choose between first.
        answers: answers of an evaluation to show first.
    """

    TITLE = "cockpit"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {key_commands}
    """Cockpit's own commands only."""
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("app")]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012 - the base declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012 - the base declares it
    CSS = """
    Screen { background: $background; }
    ToastRack { dock: top; align: right top; margin: 3 0 0 0; }
    """

    def __init__(
        self,
        runs_root: Path,
        open_run: Path | None = None,
        replay: Path | None = None,
        speed: float | None = None,
        rows: RowsTarget | None = None,
        chat: ChatTarget | None = None,
        votes: Votes | None = None,
        answers: AnswersTarget | None = None,
    ) -> None:
        super().__init__()
        self.runs_root = runs_root
        self._first_run = open_run
        self._first_replay = replay
        self._first_speed = speed
        self._first_rows = rows
        self._first_chat = chat
        self._first_votes = votes
        self._first_answers = answers
        self._safety = HarmlessLines()
        self._cells = TerminalCells()
        self.animation_level = "none"
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = chosen_theme()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """`HarmlessLines`, then Textual's own filters."""
        return [self._safety, *super().get_line_filters()]

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        """Write an update; of a partial one, only the cells that differ from what the terminal shows."""
        if isinstance(renderable, ChopsUpdate):
            renderable = self._cells.update(renderable)
        elif renderable is not None:
            self._cells.forget()
        super()._display(screen, renderable)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Cockpit's colours for themes that do not define them."""
        return ANSI_VARIABLES

    def on_mount(self) -> None:
        drawn_on = hang_up.terminal() if not self.is_headless else None
        if drawn_on is not None:
            self.set_interval(hang_up.CHECK_S, lambda: self._end_without_terminal(drawn_on))
            hang_up.on_signals(lambda: self._end_by_signal(drawn_on))
        self.open_first()

    def _end_without_terminal(self, drawn_on: int) -> None:
        """End the screen if its terminal is gone: a hang-up that is ignored would leave it running for ever."""
        if hang_up.is_gone(drawn_on):
            os._exit(ExitCode.INTERRUPTED)  # nothing can be drawn or restored any more, and the screen owns nothing

    def _end_by_signal(self, drawn_on: int) -> None:
        """End the screen and restore its terminal, if it is still there; runs continue."""
        self._end_without_terminal(drawn_on)
        self.exit(return_code=ExitCode.INTERRUPTED)

    def open_first(self) -> None:
        """Open the screen that the operator requested, or Home."""
        if self._first_replay is not None:
            self.open_replay(self._first_replay, self._first_speed)
        elif self._first_rows is not None:
            self.open_rows(self._first_rows)
        elif self._first_chat is not None:
            self.open_chat(self._first_chat)
        elif self._first_votes is not None:
            self.open_votes(self._first_votes)
        elif self._first_answers is not None:
            self.open_answers(self._first_answers)
        elif self._first_run is not None:
            self.open_run(self._first_run)
        else:
            self.open_home()

    def on_resize(self, event: Resize) -> None:
        from cockpit.tui.dialogs.too_small import fit_to_terminal

        fit_to_terminal(self, event.size.width, event.size.height)

    # ---- opening screens

    def open_home(self) -> None:
        """Show Home and close the screens above it."""
        from cockpit.tui.screens.home import HomeScreen

        for screen in self.screen_stack:
            if isinstance(screen, HomeScreen):
                while self.screen is not screen:
                    self.pop_screen()
                return
        self.push_screen(HomeScreen(self.runs_root))

    def open_run(self, run_dir: Path) -> None:
        """Show a run: live while it runs, its last state afterwards."""
        from cockpit.tui.screens.live_run import LiveRunScreen
        from cockpit.tui.screens.sources import LiveSource

        self.push_screen(LiveRunScreen(LiveSource(run_dir), run_dir=run_dir))

    def open_replay(self, path: Path, speed: float | None = None) -> None:
        """Replay a run from its directory or its journal file; `speed` is a multiple of real time."""
        from cockpit.tui.screens.replay import ReplayScreen
        from cockpit.tui.screens.sources import replay_of

        self.push_screen(ReplayScreen(replay_of(path, speed), run_dir=path if path.is_dir() else path.parent))

    def open_recipe(self, path: Path) -> None:
        """Open a recipe's form."""
        from cockpit.tui.screens.recipe_form import RecipeScreen

        self.push_screen(RecipeScreen(path, self.runs_root))

    def open_rows(self, target: RowsTarget) -> None:
        """Show the rows of a stage's data."""
        from cockpit.tui.screens.rows import RowsScreen

        self.push_screen(RowsScreen(target))

    def open_chat(self, target: ChatTarget) -> None:
        """Talk with one model or two."""
        from cockpit.tui.screens.chat import ChatScreen

        self.push_screen(ChatScreen(target))

    def open_votes(self, votes: Votes) -> None:
        """Choose between two answers."""
        from cockpit.tui.screens.blind import BlindScreen

        self.push_screen(BlindScreen(votes))

    def open_answers(self, target: AnswersTarget) -> None:
        """Show the rows of an evaluation."""
        from cockpit.tui.screens.answers import AnswersScreen

        self.push_screen(AnswersScreen(target))

    def open_checkpoints(self, run_dir: Path) -> None:
        """Show a run's checkpoints: resume, merge, quantize."""
        from cockpit.tui.screens.checkpoints import CheckpointsScreen

        self.push_screen(CheckpointsScreen(run_dir))

    # ---- launches, resumes and requests, for all screens

    def ask_to_launch(self, loaded: LoadedRecipe, figures: Plan | None, note: str = "") -> None:
        """Show the recipe's estimate and ask whether to start it; then start it and show the run."""
        from cockpit.tui.dialogs.launch import START, launch_question

        def launched() -> RunDir:
            from cockpit.launching.launch import launch

            return launch(loaded, runs_root=self.runs_root)

        def answered(answer: str | None) -> None:
            if answer == START:
                self.start(launched)

        self.push_screen(launch_question(loaded, figures, note), answered)

    def start(self, work: Callable[[], RunDir]) -> None:
        """Call `work`, which starts or resumes a run, in a thread; then show the run, or the error."""

        def worker() -> None:
            try:
                run = work()
            except OperatorError as error:
                self.call_from_thread(say_error, self, error)
            except (RunDirError, OSError) as error:
                self.call_from_thread(say, self, str(error), "error")
            else:
                self.call_from_thread(self._show_started, run)

        say(self, "starting…")
        self.run_worker(worker, thread=True, exclusive=True, exit_on_error=False, group="start")

    def _show_started(self, run: RunDir) -> None:
        """Close older screens of the run and show it."""
        while len(self.screen_stack) > 2 and getattr(self.screen, "run_dir", None) == run.root:
            self.pop_screen()
        self.open_run(run.root)

    def ask_to_stop(self, run: RunDir) -> None:
        """Ask how to stop the run, then send the request."""
        from cockpit.tui.dialogs.stop import KEEP_RUNNING, stop_question

        def answered(answer: str | None) -> None:
            if answer is not None and answer != KEEP_RUNNING:
                self.request(run, Verb(answer))

        self.push_screen(stop_question(run.id), answered)

    def request(self, run: RunDir, verb: Verb, value: float | None = None, text: str = "") -> None:
        """Send a request to a run and show the reply; in a thread, which then waits for the engine's answer.

        The log shows an answer. A notice follows only if the engine ignored the request or took too long.
        """
        from textual.worker import get_current_worker

        from cockpit.launching.answers import answer_words, not_taken_words, wait_for_answer, was_ignored
        from cockpit.launching.requests import send_request, sender

        def worker() -> None:
            try:
                reply = send_request(run, verb, value, text=text, by=sender("key on the screen"))
            except Exception as error:  # noqa: BLE001 - the operator must see every reason why nothing was sent
                self.call_from_thread(say, self, f"{run.id}: could not send the {verb} request: {error}", "error")
                return
            words = f"{reply.sentence}\n{reply.hint}"
            self.call_from_thread(say, self, words, "information" if reply.sent else "error")
            if not reply.sent:
                return
            left = get_current_worker()
            event = wait_for_answer(reply, stopped=lambda: left.is_cancelled)
            if left.is_cancelled or (event is not None and not was_ignored(event)):
                return
            words = answer_words(event) if event is not None else not_taken_words(run, reply, reply.patience_s)
            self.call_from_thread(say, self, f"{run.id}: {words}", "warning")

        self.run_worker(worker, thread=True, exit_on_error=False, group="requests")

    # ---- actions of all screens

    def action_keys_help(self) -> None:
        """Show every key of the current screen."""
        from cockpit.tui.dialogs.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(scopes_of(self.screen)))

    async def action_back(self) -> None:
        """Close the current screen; Home replaces the last one."""
        notice = getattr(self.screen, "leaving", str)()
        if notice:
            self.notify(notice, markup=False, timeout=3)
        if len(self.screen_stack) > 2:
            self.pop_screen()
            return
        from cockpit.tui.screens.home import HomeScreen

        if not isinstance(self.screen, HomeScreen):
            self.switch_screen(HomeScreen(self.runs_root))

    def action_leave(self) -> None:
        """Quit Cockpit; runs continue."""
        self.exit()
