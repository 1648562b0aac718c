"""Keys of a live run that send requests to its engine: what is asked, sent and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.control import value_question
from engines.control import pending
from engines.events.attempts import AttemptStarted, Phase
from engines.events.runs import StageStarted
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.tui import journals
from tests.tui.app_under_test import live_app, settled, text
from tests.tui.event_source import EventSource
from tests.tui.looking import notices, until


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[RunDir]:
    """A run directory with the journal of a live run; its supervisor's lock is held, so that nothing is started."""
    run = RunDir(journals.live(50).write(tmp_path / "20261120-2130-atlas"))
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({"pid": 0})
    yield run
    lock.release()


def verbs(run: RunDir) -> list[str]:
    return [request.verb for request in pending(run.control)]


async def test_checkpoint_sends_a_request_and_shows_the_reply(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("k")
        await until(pilot, lambda: verbs(supervised) == ["checkpoint"], "the request")
        await until(pilot, lambda: "checkpoint requested; " in notices(app), "the reply")


@pytest.mark.parametrize(
    ("keys", "verb", "value", "prompt"),
    [
        (["p"], "pause", None, ""),
        (["e", "right", "enter"], "evaluate", None, ""),
        (["s", *"def", "enter"], "sample", None, "def"),
        (["l", *"0.001", "enter"], "learning-rate", 0.001, ""),
        (["n", *["backspace"] * 3, *"900", "enter"], "max-steps", 900, ""),
    ],
)
async def test_keys_send_requests_with_their_values_and_the_sender(
    supervised: RunDir, keys: list[str], verb: str, value: float | None, prompt: str
) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        for number, key in enumerate(keys):
            await pilot.press(key)
            if number == 0 and len(keys) > 1:
                await until(pilot, lambda: app.screen is not app.run_screen, "the dialog")
        await until(pilot, lambda: verbs(supervised) == [verb], "the request")
        [request] = pending(supervised.control)
        assert (request.value, request.text) == (value, prompt)
        assert request.by.endswith(", key on the screen")


async def test_a_value_that_is_not_allowed_is_refused_in_the_dialog_and_esc_sends_nothing(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.screen, AskScreen), "the dialog")
        await pilot.press("7", "enter")
        await until(pilot, lambda: "allowed the new peak, a number > 0 and ≤ 1" in text(app), "what is allowed")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.run_screen, "the run's screen")
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.run_screen, "the run's screen")
        assert verbs(supervised) == []


async def test_a_request_that_no_engine_takes_says_so(supervised: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.launching.requests.ANSWER_S", 0.1)
    monkeypatch.setattr("cockpit.launching.requests.ANSWER_STEPS", 0.0)
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(160, 48), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("k")
        await until(pilot, lambda: "checkpoint not taken after 0.10s" in notices(app), "why no answer came")


async def test_a_request_that_cannot_be_written_says_why(supervised: RunDir) -> None:
    supervised.control.write_text("a file where the folder of requests should be")
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(160, 48), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("k")
        await until(pilot, lambda: "could not send the checkpoint request" in notices(app), "the reason")


async def test_stopping_asks_first_and_the_first_answer_keeps_the_run_running(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await until(pilot, lambda: "Stop after checkpoint" in text(app), "its answers")
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.run_screen, "the run's screen")
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the second question")
        await pilot.press("right", "enter")
        await until(pilot, lambda: bool(verbs(supervised)), "a request")
        assert verbs(supervised) == ["stop-after-checkpoint"], "the first answer requests nothing"
        await until(pilot, lambda: app.screen is app.run_screen, "the run's screen")
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the third question")
        await pilot.press("right", "right", "enter")
        await until(pilot, lambda: verbs(supervised) == ["stop-after-checkpoint", "stop"], "the second request")


async def test_a_finished_run_offers_no_requests() -> None:
    app = live_app(EventSource(journals.finished().events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "✓ succeeded" in shown
        assert "Ckpt" not in shown
        assert "Stop…" not in shown
        await pilot.press("x", "k", "space")
        await pilot.pause()
        assert not isinstance(app.screen, ConfirmScreen)
        assert not app.live_screen.frozen


async def test_a_stage_whose_engine_cannot_sample_does_not_ask_for_a_prompt(supervised: RunDir) -> None:
    journal = journals.live(50)
    for place, event in enumerate(journal.events):
        if isinstance(event, StageStarted | AttemptStarted):
            journal.events[place] = msgspec.structs.replace(event, kind="fake")
    app = live_app(EventSource(journal.events), supervised.root)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        for key in ("s", "k"):
            await pilot.press(key)
            await pilot.pause()
        await until(pilot, lambda: verbs(supervised) == ["checkpoint"], "the request that it does support")
        assert not isinstance(app.screen, AskScreen)


async def test_an_empty_prompt_is_refused_where_the_recipe_has_none(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, AskScreen), "the dialog")
        assert "of the recipe" not in text(app)
        await pilot.press("enter")
        await until(pilot, lambda: "allowed a prompt: the recipe has none" in text(app), "what is allowed")
        assert verbs(supervised) == []


def test_the_dialog_counts_the_prompts_of_a_recipe_that_has_some() -> None:
    question = value_question(Verb.SAMPLE, None, prompts=2)
    question.check("")  # raises nothing
    assert "Empty: 2 prompts of the recipe." in question.body


async def test_a_paused_training_says_which_key_continues_it(supervised: RunDir) -> None:
    journal = journals.live(50)
    app = live_app(EventSource(journal.events), supervised.root)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "p continues it" not in text(app)
    journal.say("e1.atlas", Phase(stage="atlas", attempt=1, name="paused"), 1.0)
    app = live_app(EventSource(journal.events), supervised.root)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "training is paused, and keeps its memory; p continues it" in text(app)
