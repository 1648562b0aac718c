"""The chat screen: prompts reach every model, answers come while they are written, esc stops, nothing hostile is drawn.

The models are scripted: what a loaded model does is tested in `tests/engines/chatting/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from cockpit.talking.saved_prompts import prompts_file, read_prompts
from cockpit.talking.target import ChatTarget
from cockpit.tui.app import CockpitApp
from cockpit.tui.screens.chat import ChatScreen
from cockpit.tui.widgets.prompt_area import PromptArea
from engines.chatting.lines import SLOWER, STOPPED, Ask, Done, Event, Failed, Job, Loading, Piece, Ready, Slowed
from recipes.problems import OperatorError
from tests.tui.looking import HOSTILE, SIZES, no_control_characters, notices, picture, until, until_seen

READY = Ready(
    runtime="transformers", dtype="bfloat16", plain=False, adapter=True, context=64, threads=1, load_s=1.0
)  # fmt: skip


class Scripted:
    """A model whose events a test sends."""

    def __init__(self, job: Job, send: Callable[[Event], None]) -> None:
        self.job, self.send = job, send
        self.asked: list[Ask] = []
        self.stopped: list[int] = []
        self.closed = False

    def start(self) -> None:
        if self.job.model == "broken":
            raise OperatorError("a distribution is missing", "install it")
        self.send(Loading(phase="loading weights", done=3 * 2**20, total=30 * 2**20))

    def ask(self, ask: Ask) -> None:
        self.asked.append(ask)

    def stop(self, number: int) -> None:
        self.stopped.append(number)
        self.finish("half", ended=STOPPED)

    def close(self) -> None:
        self.closed = True

    def finish(self, text: str, ended: str = "end") -> None:
        number = self.asked[-1].id
        self.send(Done(id=number, text=text, ended=ended, prompt_tokens=9, tokens=12, first_token_s=0.5, latency_s=2.7))


class Chat(CockpitApp):
    """The screen over scripted models."""

    def __init__(self, *models: str, **fields: Any) -> None:
        super().__init__(Path("/nonexistent"))
        self.models: list[Scripted] = []
        self._target = ChatTarget(tuple((name, Job(model=name)) for name in models), **fields)

    def open_first(self) -> None:
        self.push_screen(ChatScreen(self._target, self._session))

    def _session(self, job: Job, send: Callable[[Event], None]) -> Scripted:
        self.models.append(Scripted(job, send))
        return self.models[-1]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("cockpit.tui.screens.chat.DRAIN_S", 0.01)


async def say(pilot: Pilot[None], text: str) -> None:
    pilot.app.screen.query_one(PromptArea).write(text)
    await pilot.press("enter")


@pytest.mark.parametrize("size", SIZES)
async def test_two_models_answer_the_same_prompt_one_after_another(size: tuple[int, int]) -> None:
    app = Chat("base", "last:tuned", system="Be brief.")
    async with app.run_test(size=size) as pilot:
        await until_seen(pilot, "3 MiB of 30 MiB")
        await say(pilot, "Which city?")
        first, second = app.models
        assert not first.asked, "it waits for the model"
        for model in app.models:
            model.send(READY)
        await until(pilot, lambda: bool(first.asked), "the prompt is asked")
        assert not second.asked, "one after another"
        first.send(Piece(id=first.asked[0].id, text="Oslo, of", tokens=2))
        await until_seen(pilot, "Oslo, of")
        first.finish("Oslo, of course\n    indented")
        await until(pilot, lambda: bool(second.asked), "the second model is asked")
        second.finish("Rome")
        await until_seen(pilot, "Rome")
        shown = picture(app)
        assert "Oslo, of course" in shown
        assert "     indented" in shown
        assert "12 tokens, 5 tok/s, first after 0.50s" in shown
        assert first.asked[0].messages == second.asked[0].messages
        assert first.asked[0].messages[0] == {"role": "system", "content": "Be brief."}
        await say(pilot, "And then?")
        await until(pilot, lambda: len(first.asked) == 2, "the next prompt")
        assert [turn["content"] for turn in first.asked[1].messages[1:]] == [
            "Which city?",
            "Oslo, of course\n    indented",
            "And then?",
        ]
    assert all(model.closed for model in app.models)


async def test_esc_stops_the_answer_and_keeps_what_there_is_and_then_leaves() -> None:
    app = Chat("base")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(app.models), "a model")
        model = app.models[0]
        model.send(READY)
        await say(pilot, "Count.")
        await until(pilot, lambda: bool(model.asked), "asked")
        await pilot.press("escape")
        await until_seen(pilot, "you stopped it")
        assert model.stopped == [model.asked[0].id]
        assert "half" in picture(app)
        await pilot.press("ctrl+r")
        await until(pilot, lambda: len(model.asked) == 2, "asked again")
        assert model.asked[1].messages == model.asked[0].messages
        model.send(Failed(id=model.asked[1].id, error="the conversation has 99 tokens", hint="begin a new one"))
        await until_seen(pilot, "99 tokens; begin a new one")
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ChatScreen), "the screen is closed")
        assert model.closed


async def test_what_a_model_says_is_drawn_and_not_obeyed() -> None:
    app = Chat("ba\x1b[2Jse")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(app.models), "a model")
        model = app.models[0]
        model.send(READY)
        for text in HOSTILE:
            await say(pilot, f"x{text}")
            await until(pilot, lambda: bool(model.asked), "asked")
            model.send(Piece(id=model.asked[-1].id, text=text, tokens=1))
            model.finish(f"<{text}>")
            await until(pilot, lambda: not app.screen.dialogue.busy, "answered")  # type: ignore[attr-defined]
            assert no_control_characters(app)
        assert "[/bold]" in picture(app) or model.asked


async def test_a_model_that_cannot_be_loaded_says_why_and_the_other_one_answers() -> None:
    app = Chat("broken", "base")
    async with app.run_test(size=(80, 24)) as pilot:
        await until_seen(pilot, "a distribution is missing")
        app.models[1].send(READY)
        await say(pilot, "Well?")
        await until(pilot, lambda: bool(app.models[1].asked), "asked")
        app.models[1].send(Failed(error="signal 9 ended the process of the model"))
        await until_seen(pilot, "signal 9 ended")
        await say(pilot, "And now?")
        assert "no model is loaded; ^r loads it again" in notices(app)


async def test_a_model_whose_process_ended_is_loaded_again_and_asked_the_last_prompt() -> None:
    app = Chat("base", "other")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: len(app.models) == 2, "two models")
        for model in app.models:
            model.send(READY)
        await say(pilot, "Well?")
        await until(pilot, lambda: bool(app.models[0].asked), "asked")
        app.models[0].send(Failed(error="signal 9 ended the process of the model"))
        await until(pilot, lambda: bool(app.models[1].asked), "the other one asked")
        await pilot.press("ctrl+r")  # not while one answers
        app.models[1].finish("Yes.")
        await until_seen(pilot, "Yes.")
        assert len(app.models) == 2
        await pilot.press("ctrl+r")
        await until(pilot, lambda: len(app.models) == 3, "loaded again")
        assert app.models[0].closed
        app.models[1].finish("Yes, again.")
        app.models[2].send(READY)
        await until(pilot, lambda: bool(app.models[2].asked), "asked again")
        assert app.models[2].asked[0].messages[-1]["content"] == "Well?"
        app.models[2].finish("No.")
        await until_seen(pilot, "No.")


async def test_the_settings_the_adapter_and_the_system_prompt_reach_the_next_answer() -> None:
    app = Chat("base")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(app.models), "a model")
        model = app.models[0]
        model.send(READY)
        await pilot.press("ctrl+g")
        await until_seen(pilot, "Sampling")
        await pilot.press(*["backspace"] * 3, *"900", "enter")
        await until_seen(pilot, "must be a number from 0 to 100")
        await pilot.press(*["backspace"] * 3, *"0.7", "enter")
        await until_seen(pilot, "temperature 0.7")
        await pilot.press("ctrl+t")
        await until_seen(pilot, "adapter off")
        await pilot.press("ctrl+o")
        await until_seen(pilot, "System prompt")
        await pilot.press(*"Hm.", "enter")
        await say(pilot, "Go.")
        await until(pilot, lambda: bool(model.asked), "asked")
        asked = model.asked[0]
        assert (asked.sampling.temperature, asked.adapter) == (0.7, False)
        assert asked.messages[0] == {"role": "system", "content": "Hm."}
        model.finish("one")
        await until(pilot, lambda: not app.screen.dialogue.busy, "answered")  # type: ignore[attr-defined]
        await pilot.press("ctrl+r")
        await until(pilot, lambda: len(model.asked) == 2, "again")
        assert model.asked[1].sampling.seed == asked.sampling.seed + 1


async def test_prompts_and_conversations_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = Chat("base", system="S")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(app.models), "a model")
        model = app.models[0]
        model.send(READY)
        await say(pilot, "line 1\nline 2")
        await until(pilot, lambda: bool(model.asked), "asked")
        model.finish("yes")
        await until_seen(pilot, "yes")
        await pilot.press("up")
        assert app.screen.query_one(PromptArea).text == "line 1\nline 2", "history"
        await pilot.press("f3")
        await until_seen(pilot, "Save the prompt")
        await pilot.press(*"mine", "enter")
        await until(pilot, lambda: "saved as" in notices(app), "saved")
        assert [(one.name, one.prompt, one.system) for one in read_prompts(prompts_file())] == [
            ("mine", "line 1\nline 2", "S")
        ]
        await pilot.press("ctrl+n")
        app.screen.query_one(PromptArea).write("")
        await pilot.press("ctrl+l")
        await until_seen(pilot, "Saved prompts")
        await pilot.press("enter")
        await until(pilot, lambda: any(area.text for area in app.screen.query(PromptArea)), "chosen")
        await pilot.press("enter")
        await until(pilot, lambda: len(model.asked) == 2, "asked")
        model.finish("no")
        await until_seen(pilot, "no")
        await pilot.press("ctrl+s")
        await until_seen(pilot, "Save the conversation")
        await pilot.press("enter")
        await until(pilot, lambda: "added 1 conversation" in notices(app), "saved")
    rows = [json.loads(line) for line in (tmp_path / "conversations.jsonl").read_text().splitlines()]
    assert rows == [
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "line 1\nline 2"},
                {"role": "assistant", "content": "no"},
            ]
        }
    ]


async def test_an_answer_that_gives_way_to_a_run_says_so_until_the_run_ends() -> None:
    app = Chat("base")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(app.models), "a model")
        model = app.models[0]
        model.send(Slowed(slow=True))
        model.send(READY)
        await until_seen(pilot, SLOWER)
        model.send(Slowed(slow=False))
        await until(pilot, lambda: SLOWER not in picture(app), "full speed")
