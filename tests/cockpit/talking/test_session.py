"""A session with a real process: it loads, answers, stops an answer, says how it was killed, and ends."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from cockpit.talking.session import ChatSession
from engines.chatting.lines import LIMIT, STOPPED, Ask, Begun, Done, Event, Failed, Job, Loading, Piece, Ready, Sampling
from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.torch

E = TypeVar("E")
LONG = Sampling(max_new_tokens=100_000)


class Talker:
    """A session and its events."""

    def __init__(self, model: Path) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.session = ChatSession(Job(model=str(model), plain=True, threads=1), self.events.put)
        self.number = 0

    def ask(self, sampling: Sampling) -> int:
        self.number += 1
        messages = [{"role": "user", "content": "import json"}]
        self.session.ask(Ask(id=self.number, messages=messages, sampling=sampling))
        return self.number

    def until(self, kind: type[E]) -> E:
        """The next event of a kind."""
        while not isinstance(event := self.events.get(timeout=PATIENCE_S), kind):
            assert not isinstance(event, Failed), event
        return event


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny_model(tokenizer_of(stdlib_text(folder, "json"), folder / "tokenizer"), folder / "model")


@pytest.fixture
def talker(model: Path) -> Iterator[Talker]:
    found = Talker(model)
    found.session.start()
    found.until(Loading)
    with suppress(OSError):  # with the priority of the tests, so that it loads while other ones compute
        Path(f"/proc/{found.session.pid}/autogroup").write_text("0")
    yield found
    found.session.close()
    found.session.close()
    assert not psutil.pid_exists(found.session.pid), "it has ended"


def test_a_session_answers_stops_and_says_who_killed_it(talker: Talker) -> None:
    ready = talker.until(Ready)
    assert (ready.runtime, ready.plain, ready.threads) == ("transformers", True, 1)
    talker.ask(Sampling(max_new_tokens=4))
    done = talker.until(Done)
    assert (done.id, done.ended, done.tokens) == (1, LIMIT, 4)

    talker.ask(LONG)
    talker.until(Piece)
    talker.session.stop(2)
    done = talker.until(Done)
    assert (done.id, done.ended) == (2, STOPPED)

    talker.session.stop(3)  # before it is asked
    assert talker.ask(Sampling(max_new_tokens=4)) == 3
    done = talker.until(Done)
    assert (done.id, done.ended, done.tokens) == (3, STOPPED, 0)

    talker.ask(LONG)
    talker.until(Begun)
    os.kill(talker.session.pid, signal.SIGKILL)
    failed = talker.until(Failed)
    assert failed.id is None
    assert failed.error.startswith("signal 9 ended the process of the model")
    talker.ask(Sampling(max_new_tokens=4))
    assert talker.events.empty(), "an ended process sends nothing"


def test_a_session_that_is_closed_while_it_answers_ends_and_reports_no_failure(talker: Talker) -> None:
    talker.until(Ready)
    talker.ask(LONG)
    talker.until(Begun)
    talker.session.close()
    assert not psutil.pid_exists(talker.session.pid)
    left = []
    while not talker.events.empty():
        left.append(talker.events.get())
    assert not [event for event in left if isinstance(event, Failed)]
