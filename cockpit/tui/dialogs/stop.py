"""The question before a run stops."""

from __future__ import annotations

from cockpit.launching.requests import STOP_AFTER_CHECKPOINT, STOP_NOW, STOP_WITHOUT_CHECKPOINTS
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from engines.words import Verb

KEEP_RUNNING = "keep-running"


def stop_question(run_id: str) -> ConfirmScreen:
    """Ask whether to stop after a checkpoint, now or not at all. Returns KEEP_RUNNING or the request's verb."""
    body = (
        f"After checkpoint: {STOP_AFTER_CHECKPOINT}.\n"
        f"Now: {STOP_NOW}.\n"
        f"{STOP_WITHOUT_CHECKPOINTS}"
    )  # fmt: skip
    answers = [
        Answer(KEEP_RUNNING, "Keep running"),
        Answer(Verb.STOP_AFTER_CHECKPOINT, "Stop after checkpoint"),
        Answer(Verb.STOP, "Stop now", danger=True),
    ]
    return ConfirmScreen(f"Stop {run_id}?", body, answers)
