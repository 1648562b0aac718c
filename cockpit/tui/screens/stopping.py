"""Stopping a run from a screen: after a checkpoint, or now; nothing is stopped without being asked for here."""

from __future__ import annotations

from textual.screen import Screen

from cockpit.tui.look.notices import say, say_error
from cockpit.tui.screens.confirm import Answer, ConfirmScreen
from engines.run_dir import RunDir
from engines.words import Verb
from recipes.problems import OperatorError

VERBS = {"checkpoint": Verb.STOP_AFTER_CHECKPOINT, "now": Verb.STOP}


def ask_to_stop(screen: Screen[None], run: RunDir) -> None:
    """Ask how to stop the run; the first answer leaves it alone."""

    def answered(answer: str | None) -> None:
        verb = VERBS.get(answer or "")
        if verb is not None:
            screen.run_worker(lambda: _request(screen, run, verb), thread=True, exit_on_error=False, group="stop")

    answers = [
        Answer("no", "Let it run"),
        Answer("checkpoint", "After a checkpoint"),
        Answer("now", "Now", danger=True),
    ]
    body = "After a checkpoint: nothing is lost, Resume goes on from there.\nNow: the steps since the last checkpoint are lost."
    screen.app.push_screen(ConfirmScreen(f"Stop {run.id}?", body, answers), answered)


def _request(screen: Screen[None], run: RunDir, verb: Verb) -> None:
    from cockpit.supervision.launch import request

    try:
        request(run, verb)
    except OperatorError as error:
        screen.app.call_from_thread(say_error, screen, error)
    else:
        screen.app.call_from_thread(say, screen, f"{run.id}: asked to {verb.replace('-', ' ')}")
