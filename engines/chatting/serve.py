"""Answers the requests of a chat, one after another, while a thread reads the next ones and notes which to stop."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

import msgspec

from engines.chatting.lines import END, FULL, LIMIT, STOPPED, Ask, Begun, Done, Event, Failed, Piece, Request, Stop
from engines.chatting.talk import Talk
from engines.chatting.text_stream import TextStream
from engines.llama.library import NativeError
from recipes.problems import OperatorError, printable

MAX_LINE_BYTES = 64 * 1024 * 1024
Send = Callable[[Event], None]


class Requests:
    """The requests on a stream, read by a thread of its own; at its end `on_end` is called in that thread."""

    def __init__(self, stream: BinaryIO, on_end: Callable[[], None]) -> None:
        self._waiting: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        self._stopped: set[int] = set()
        self._stream, self._on_end = stream, on_end
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Ask:
        """The next request for an answer; waits for it."""
        return self._waiting.get()

    def is_stopped(self, number: int) -> bool:
        """Whether a request was stopped."""
        return number in self._stopped

    def _read(self) -> None:
        while line := self._stream.readline(MAX_LINE_BYTES):
            request: Ask | Stop = msgspec.json.decode(line, type=Request)
            if isinstance(request, Stop):
                self._stopped.add(request.id)
            else:
                self._waiting.put(request)
        self._on_end()


def answer(talk: Talk, ask: Ask, send: Send, stopped: Callable[[], bool]) -> None:
    """Answer one request; every outcome is sent."""
    try:
        _answer(talk, ask, send, stopped)
    except OperatorError as error:
        send(Failed(id=ask.id, error=error.message, hint=error.hint))
    except NativeError as error:
        send(Failed(id=ask.id, error=str(error)))
    except Exception as error:  # noqa: BLE001 - a model's own code and a full memory raise anything
        what = printable(str(error).partition("\n")[0], 300)
        send(Failed(id=ask.id, error=f"the model could not answer: {type(error).__name__}: {what}"))


def _answer(talk: Talk, ask: Ask, send: Send, stopped: Callable[[], bool]) -> None:
    started_s = time.perf_counter()
    ids = talk.encode(ask.messages)
    room = talk.context - len(ids)
    if not ids or room < 1:
        fault = f"has {len(ids)} tokens, and the model takes {talk.context}" if ids else "has no tokens"
        raise OperatorError(f"the conversation {fault}", "begin a new conversation" if ids else "write a prompt")
    send(Begun(id=ask.id, prompt_tokens=len(ids)))
    sampling = msgspec.structs.replace(ask.sampling, max_new_tokens=min(ask.sampling.max_new_tokens, room))
    new: list[int] = []
    times_s: list[float] = []
    stream = TextStream(talk.decode)

    def show(token: int) -> None:
        new.append(token)
        times_s.append(time.perf_counter() - started_s)
        if token in talk.ends:
            return
        piece = stream.add(token)
        if piece:
            send(Piece(id=ask.id, text=piece, tokens=len(new)))

    if not stopped():
        talk.generate(ids, sampling, adapter=ask.adapter, show=show, stopped=stopped)
    ended = bool(new) and new[-1] in talk.ends
    how = END if ended else STOPPED if stopped() else LIMIT if len(new) >= ask.sampling.max_new_tokens else FULL
    text = talk.decode(new[:-1] if ended else new) if new else ""
    send(
        Done(
            id=ask.id,
            text=text,
            ended=how,
            prompt_tokens=len(ids),
            tokens=len(new),
            first_token_s=times_s[0] if times_s else 0.0,
            latency_s=times_s[-1] if times_s else time.perf_counter() - started_s,
        )
    )
