"""Starting a run from a screen: the question before, the work in a thread, the run's screen after."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.screen import Screen

from cockpit.text.safe_text import safe_text
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.screens.confirm import Answer, ConfirmScreen
from cockpit.tui.screens.navigation import navigator
from cockpit.tui.widgets.preview import plan_words
from engines.run_dir import RunDir, RunDirError
from recipes.problems import OperatorError

if TYPE_CHECKING:
    from cockpit.planning.stages import Plan
    from recipes.load import LoadedRecipe


def confirm_launch(screen: Screen[None], loaded: LoadedRecipe, figures: Plan | None, note: str = "") -> None:
    """Ask whether to start the recipe, saying what it takes; then start it and show it."""
    recipe = loaded.recipe
    stages = ", ".join(stage.name for stage in recipe.stage)
    lines = [recipe.description, f"{len(recipe.stage)} stages: {stages}", plan_words(figures), note]
    body = "\n".join(safe_text(line, 600) for line in lines if line)

    def answered(answer: str | None) -> None:
        if answer == "start":
            start(screen, lambda: _launch(screen, loaded))

    answers = [Answer("no", "Not now"), Answer("start", "Start the run")]
    screen.app.push_screen(ConfirmScreen(f"Start {recipe.name}?", body, answers), answered)


def start(screen: Screen[None], work: Callable[[], RunDir]) -> None:
    """Do the work that starts (or resumes) a run off the screen's loop, then open the run."""
    say(screen, "starting…")

    def worker() -> None:
        try:
            run = work()
        except OperatorError as error:
            screen.app.call_from_thread(say_error, screen, error)
        except (RunDirError, OSError) as error:
            screen.app.call_from_thread(say, screen, str(error), "error")
        else:
            screen.app.call_from_thread(open_run, screen, run)

    screen.run_worker(worker, thread=True, exclusive=True, exit_on_error=False, group="start")


def open_run(screen: Screen[None], run: RunDir) -> None:
    """Show the run that was started or resumed, in the place of older screens of it."""
    app = screen.app
    while len(app.screen_stack) > 2 and getattr(app.screen, "run_dir", None) == run.root:
        app.pop_screen()
    navigator(screen).open_run(run.root)


def _launch(screen: Screen[None], loaded: LoadedRecipe) -> RunDir:
    from cockpit.supervision.launch import launch

    return launch(loaded, runs_root=navigator(screen).runs_root)
