"""A folder's model talks as it answers an evaluation, token by token; it stops at once, and every failure has words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.chatting.folder_talk import FolderTalk
from engines.chatting.lines import END, FULL, LIMIT, STOPPED, Ask, Begun, Done, Event, Failed, Piece, Sampling
from engines.chatting.serve import answer
from engines.evaluate.folder_answers import FolderAnswers
from engines.evaluate.model import load_model
from engines.judging.task import Check, Task
from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of
from tests.exporters.small_models import build_adapter

pytestmark = pytest.mark.torch

TURNS: list[dict[str, Any]] = [{"role": "user", "content": "What is it?"}]
DRAWN = Sampling(temperature=1.5, top_k=40, top_p=0.95, repetition_penalty=1.1, max_new_tokens=16, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny_model(tokenizer_of(stdlib_text(folder, "json"), folder / "tokenizer"), folder / "model")


@pytest.fixture(scope="module")
def talk(model: Path) -> FolderTalk:
    return FolderTalk(load_model(model, "model"))


def said(
    talk: FolderTalk, sampling: Sampling, *, adapter: bool = True, stopped: Callable[[], bool] = lambda: False
) -> tuple[Done, list[Event]]:
    events: list[Event] = []
    answer(talk, Ask(id=1, messages=TURNS, sampling=sampling, adapter=adapter), events.append, stopped)
    assert isinstance(events[-1], Done), events
    return events[-1], events


def test_a_greedy_answer_is_that_of_an_evaluation(model: Path, talk: FolderTalk) -> None:
    done, events = said(talk, Sampling(max_new_tokens=24))
    task = Task("k", "t:1", tuple(TURNS), "", (Check("number"),))
    answers = FolderAnswers(load_model(model, "model"), sha256="", size_bytes=0, limit=24)
    kept = answers.answer([(task, answers.encode(task))], lambda: None)[0]
    assert (done.text, done.tokens, done.prompt_tokens) == (kept.answer, kept.tokens, kept.prompt_tokens)
    assert (done.ended == END) == kept.ended
    assert 0 < done.first_token_s <= done.latency_s
    assert isinstance(events[0], Begun)


def test_the_pieces_of_an_answer_are_its_text(talk: FolderTalk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "decode", lambda ids: "".join(chr(0x61 + token % 26) for token in ids))
    done, events = said(talk, Sampling(max_new_tokens=24))
    pieces = [event for event in events if isinstance(event, Piece)]
    assert len(pieces) > 3, "it comes while it is written"
    assert "".join(piece.text for piece in pieces) == done.text
    assert [piece.tokens for piece in pieces] == sorted(piece.tokens for piece in pieces)


def test_a_drawn_answer_depends_on_its_seed_alone(talk: FolderTalk) -> None:
    first, _ = said(talk, DRAWN)
    again, _ = said(talk, DRAWN)
    other, _ = said(talk, msgspec.structs.replace(DRAWN, seed=4))
    assert first.text == again.text != other.text


def test_an_answer_stops_after_the_token_at_which_it_was_stopped(talk: FolderTalk) -> None:
    calls = iter([False] * 5 + [True] * 1000)
    done, events = said(talk, Sampling(max_new_tokens=64), stopped=lambda: next(calls))
    assert done.ended == STOPPED
    assert done.tokens < 5
    assert not any(isinstance(event, Failed) for event in events)
    untouched, _ = said(talk, Sampling(max_new_tokens=3), stopped=lambda: True)
    assert (untouched.tokens, untouched.ended) == (0, STOPPED)
    assert said(talk, Sampling(max_new_tokens=3))[0].ended in {LIMIT, END}, "the next one is whole"


def test_a_full_context_is_said_before_and_after(talk: FolderTalk, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = len(talk.encode(TURNS))
    monkeypatch.setattr(talk, "context", prompt + 2)
    done, _ = said(talk, msgspec.structs.replace(DRAWN, max_new_tokens=9))
    assert done.ended in {FULL, END}
    monkeypatch.setattr(talk, "context", prompt)
    events: list[Event] = []
    answer(talk, Ask(id=2, messages=TURNS), events.append, lambda: False)
    assert [type(event) for event in events] == [Failed]
    assert isinstance(events[0], Failed)
    assert f"has {prompt} tokens" in events[0].error


def test_whatever_a_model_raises_becomes_a_sentence(talk: FolderTalk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_given: Any, **_more: Any) -> None:
        raise RuntimeError("CUDA error\x1b[2J: device-side assert\nline 2")

    monkeypatch.setattr(talk, "generate", fails)
    events: list[Event] = []
    answer(talk, Ask(id=7, messages=TURNS), events.append, lambda: False)
    assert isinstance(events[-1], Failed)
    assert events[-1].id == 7
    assert "RuntimeError" in events[-1].error
    assert "\x1b" not in events[-1].error
    assert "line 2" not in events[-1].error


def test_without_its_adapter_a_model_is_its_base(model: Path, talk: FolderTalk, tmp_path: Path) -> None:
    adapter = build_adapter(tmp_path / "adapter", model, init_lora_weights=False)
    (tmp_path / "adapter" / "tokenizer_config.json").unlink(missing_ok=True)
    adapted = FolderTalk(load_model(adapter, "adapter"))
    sampling = Sampling(max_new_tokens=16)
    base = said(talk, sampling)[0].text
    assert adapted.has_adapter
    assert not talk.has_adapter
    assert said(adapted, sampling, adapter=False)[0].text == base
    assert said(adapted, sampling)[0].text != base
    assert said(adapted, sampling, adapter=False)[0].text == base, "and again"


@pytest.mark.parametrize("text", ["plain", "naïve — ünïcode 🌍🌍", "é" * 30])
def test_pieces_are_whole_characters(text: str) -> None:
    from engines.chatting.text_stream import TextStream

    data = text.encode()

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    stream = TextStream(decode)
    pieces = [stream.add(byte) for byte in data]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_do_not_hold_the_stream_back() -> None:
    from engines.chatting.text_stream import TextStream

    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"))
    assert "".join(stream.add(0xFF) for _ in range(40)).count("\ufffd") >= 24
