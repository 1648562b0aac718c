"""What a run screen asks of a running engine, and the question before it is asked to stop."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from textual.app import App

from cockpit.text.safe_text import safe_text
from cockpit.tui.screens.confirm import Answer, ConfirmScreen
from engines.run_dir import RunDir, RunDirError, lock_is_held
from engines.words import Verb
from recipes.problems import OperatorError


def ask(app: App[None], run: RunDir, verb: Verb) -> None:
    """Leave a request and say so; runs in a thread, as it reads the run's journal."""
    from cockpit.supervision.launch import request  # brings pydantic along, which a screen that only looks does without

    try:
        request(run, verb)
    except OperatorError as error:
        tell = partial(app.notify, safe_text(error.hint), title=safe_text(str(error)), severity="error", markup=False)
    except Exception as error:  # noqa: BLE001 - whatever it was, the operator must know that nothing was asked
        tell = partial(
            app.notify, safe_text(error), title=f"{verb} could not be asked for", severity="error", markup=False
        )
    else:
        tell = partial(app.notify, "answered in the log when the engine takes it", title=f"asked: {verb}", markup=False)
    app.call_from_thread(tell)


def keep_supervised(app: App[None], run: RunDir) -> None:
    """Adopt the run if its supervisor has died, and say so; runs in a thread."""
    if lock_is_held(run.supervisor_lock) or run.exit_json.exists():
        return
    from cockpit.supervision.launch import adopt_if_needed

    with suppress(OperatorError, RunDirError):  # a directory of a newer format, or one that cannot be written
        if adopt_if_needed(run):
            text = "its supervisor had died; a new one goes on from where it was"
            app.call_from_thread(partial(app.notify, text, title=safe_text(run.id), markup=False))


def stop_question(run_id: str) -> ConfirmScreen:
    """Stop after a checkpoint, now, or not at all."""
    return ConfirmScreen(
        f"Stop {run_id}?",
        "After a checkpoint: nothing is lost; the engine saves at the next step and ends.\n"
        "Now: the engine ends at the next step; steps since its newest checkpoint are done again on resume.",
        [
            Answer("cancel", "Go on training"),
            Answer(Verb.STOP_AFTER_CHECKPOINT, "Stop after checkpoint"),
            Answer(Verb.STOP, "Stop now", danger=True),
        ],
    )
