"""The stop dialog says what happens to the steps, in the same sentences as the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.headless.follow import QUESTION
from cockpit.launching.requests import STOP_AFTER_CHECKPOINT, STOP_NOW, effect_of
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.stop import KEEP_RUNNING, stop_question
from engines.words import Verb
from tests.tui.app_under_test import live_app, text
from tests.tui.event_source import EventSource
from tests.tui.looking import SIZES, until


def unwrapped(shown: str) -> str:
    """The screen's text without frames and line breaks."""
    return " ".join("".join(" " if char in "│╭╮╰╯─" else char for char in shown).split())


@pytest.mark.parametrize("size", SIZES)
async def test_both_ways_to_stop_are_described_in_full_at_every_size(size: tuple[int, int]) -> None:
    app = live_app(EventSource(), Path("/nonexistent/20261120-2130-atlas"))
    async with app.run_test(size=size) as pilot:
        app.push_screen(stop_question("20261120-2130-atlas"))
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await until(pilot, lambda: "Keep running" in text(app), "its buttons")
        shown = unwrapped(text(app))
        assert f"After checkpoint: {STOP_AFTER_CHECKPOINT}." in shown
        assert f"Now: {STOP_NOW}." in shown
        assert "Stop after checkpoint" in shown
        assert "Stop now" in shown


async def test_leaving_the_question_keeps_the_run_running() -> None:
    app = live_app(EventSource(), Path("/nonexistent/20261120-2130-atlas"))
    answers: list[str | None] = []
    async with app.run_test(size=SIZES[0]) as pilot:
        app.push_screen(stop_question("20261120-2130-atlas"), answers.append)
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await pilot.press("escape")
        await until(pilot, lambda: bool(answers), "an answer")
        assert answers == [KEEP_RUNNING]


def test_the_question_at_ctrl_c_and_the_reply_to_a_request_have_the_same_sentences() -> None:
    assert STOP_AFTER_CHECKPOINT in QUESTION
    assert effect_of(Verb.STOP_AFTER_CHECKPOINT) == STOP_AFTER_CHECKPOINT
    assert effect_of(Verb.STOP) == STOP_NOW
