"""One or two models that get the same prompts: who answers now, who waits, what is stopped and asked again.

Answers come one after another. So the speeds of two models can be compared, and a training beside them loses time to
one model and not to two.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from cockpit.talking.conversation import Conversation, Turn
from cockpit.talking.target import ChatTarget
from engines.chatting.lines import (
    STOPPED,
    Ask,
    Begun,
    Done,
    Event,
    Failed,
    Job,
    Loading,
    Piece,
    Ready,
    Sampling,
    Slowed,
    Warned,
)
from recipes.problems import OperatorError


class Session(Protocol):
    """What a dialogue needs of `ChatSession`."""

    def start(self) -> None: ...

    def ask(self, ask: Ask) -> None: ...

    def stop(self, number: int) -> None: ...

    def close(self) -> None: ...


@dataclass
class Speaker:
    """One model with its conversation.

    Attributes:
        title: as the operator named it.
        job: the model.
        talk: its conversation.
        loading: the newest report while it is loaded.
        ready: what it is; None before.
        failed: why it cannot answer; empty if it can.
        hint: what to do about it.
        warnings: what the operator should know about it.
        slow: it gives way to a run.
    """

    title: str
    job: Job
    talk: Conversation
    loading: Loading = field(default_factory=lambda: Loading(phase="starting"))
    ready: Ready | None = None
    failed: str = ""
    hint: str = ""
    warnings: list[str] = field(default_factory=list)
    slow: bool = False


class Dialogue:
    """A chat with one or two models.

    Attributes:
        speakers: the models.
        sampling: of the next answer.
        adapter: whether the next answer is with the adapter.
    """

    def __init__(self, target: ChatTarget) -> None:
        self.speakers = [Speaker(title, job, Conversation(target.system)) for title, job in target.models]
        self.sampling: Sampling = target.sampling
        self.adapter = target.adapter
        self._sessions: list[Session] = []
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[int, Turn]] = deque()
        self._active: tuple[int, Turn] | None = None

    def begin(self, sessions: Sequence[Session]) -> None:
        """Load the models, in sessions of their own."""
        self._sessions = list(sessions)
        for at in range(len(self.speakers)):
            self._start(at)

    def load_again(self, at: int, session: Session) -> None:
        """Load a model whose process has ended, in a new session; its conversation stays."""
        self._sessions[at].close()
        self._sessions[at] = session
        speaker = self.speakers[at]
        speaker.loading, speaker.ready, speaker.slow = Loading(phase="starting"), None, False
        speaker.failed, speaker.hint = "", ""
        speaker.warnings.clear()
        self._start(at)

    def _start(self, at: int) -> None:
        try:
            self._sessions[at].start()
        except OperatorError as error:
            self.speakers[at].failed, self.speakers[at].hint = error.message, error.hint

    def close(self) -> None:
        """End the models' processes."""
        for session in self._sessions:
            session.close()

    @property
    def busy(self) -> bool:
        """An answer is written or waited for."""
        return self._active is not None or bool(self._waiting)

    @property
    def answering(self) -> Speaker | None:
        """The model that answers now."""
        return None if self._active is None else self.speakers[self._active[0]]

    @property
    def system(self) -> str:
        """The system prompt."""
        return self.speakers[0].talk.system

    @system.setter
    def system(self, text: str) -> None:
        for speaker in self.speakers:
            speaker.talk.system = text

    @property
    def turns(self) -> int:
        """Prompts so far."""
        return len(self.speakers[0].talk.turns)

    @property
    def can_answer(self) -> bool:
        """At least one model is loaded, or may be."""
        return any(not speaker.failed for speaker in self.speakers)

    @property
    def has_adapter(self) -> bool:
        """A model has an adapter that can be switched off."""
        return any(speaker.ready is not None and speaker.ready.adapter for speaker in self.speakers)

    @property
    def slow(self) -> bool:
        """A model gives way to a run."""
        return any(speaker.slow and not speaker.failed for speaker in self.speakers)

    def send(self, prompt: str) -> None:
        """Give each model the prompt as its next turn; one that is loaded later answers then."""
        for at, speaker in enumerate(self.speakers):
            turn = Turn(prompt, next(self._numbers), adapter=self.adapter)
            if speaker.failed:
                turn.failed = "the model is not loaded"
            speaker.talk.turns.append(turn)
            if turn.is_open:
                self._waiting.append((at, turn))
        self._proceed()

    def regenerate(self) -> None:
        """Ask for the last answer again; with a temperature, by the next seed."""
        if self.busy or not self.turns:
            return
        if self.sampling.temperature > 0:
            self.sampling = msgspec.structs.replace(self.sampling, seed=(self.sampling.seed + 1) % 2**32)
        prompt = self.speakers[0].talk.turns[-1].prompt
        for speaker in self.speakers:
            speaker.talk.turns.pop()
        self.send(prompt)

    def stop(self) -> bool:
        """Stop the answers; returns whether there was one. What is written of them stays."""
        if not self.busy:
            return False
        for _, turn in self._waiting:
            turn.done = _nothing(turn.request)
        self._waiting.clear()
        if self._active is not None:
            at, turn = self._active
            self._sessions[at].stop(turn.request)
        return True

    def clear(self) -> None:
        """Begin a new conversation with the same system prompt."""
        self.stop()
        for speaker in self.speakers:
            speaker.talk.turns.clear()

    def handle(self, at: int, event: Event) -> None:
        """Take an event of one model."""
        speaker = self.speakers[at]
        match event:
            case Loading():
                speaker.loading = event
            case Warned(text=text):
                speaker.warnings.append(text)
            case Ready():
                speaker.ready = event
            case Slowed(slow=slow):
                speaker.slow = slow
            case Piece() | Done():
                self._written(at, event)
            case Failed(id=None, error=error, hint=hint):
                speaker.failed, speaker.hint = error, hint
                self._all_ended(at, error)
            case Failed(id=number, error=error, hint=hint):
                turn = None if number is None else self._turn(at, number)
                if turn is not None:
                    turn.failed = f"{error}; {hint}" if hint else error
                self._ended(at, number)
            case Begun():
                pass
        self._proceed()

    def _written(self, at: int, event: Piece | Done) -> None:
        turn = self._turn(at, event.id)
        if isinstance(event, Done):
            if turn is not None:
                turn.answer, turn.done, turn.tokens = event.text, event, event.tokens
            self._ended(at, event.id)
        elif turn is not None:
            turn.answer += event.text
            turn.tokens = event.tokens

    def _turn(self, at: int, number: int) -> Turn | None:
        """The turn of a request; None for one that was cleared."""
        return next((turn for turn in reversed(self.speakers[at].talk.turns) if turn.request == number), None)

    def _ended(self, at: int, number: int | None) -> None:
        if self._active is not None and self._active[0] == at and self._active[1].request == number:
            self._active = None

    def _all_ended(self, at: int, why: str) -> None:
        """A model's process is gone: it owes nothing any more."""
        owed = [turn for of, turn in self._waiting if of == at]
        self._waiting = deque(item for item in self._waiting if item[0] != at)
        if self._active is not None and self._active[0] == at:
            owed.append(self._active[1])
            self._active = None
        for turn in owed:
            turn.failed = why

    def _proceed(self) -> None:
        """Ask the next model that waits and is loaded."""
        if self._active is not None:
            return
        for item in self._waiting:
            at, turn = item
            if self.speakers[at].ready is not None:
                self._waiting.remove(item)
                self._active = item
                messages = self.speakers[at].talk.messages(with_last_answer=False)
                self._sessions[at].ask(
                    Ask(id=turn.request, messages=messages, sampling=self.sampling, adapter=turn.adapter)
                )
                return


def _nothing(number: int) -> Done:
    return Done(id=number, text="", ended=STOPPED, prompt_tokens=0, tokens=0, first_token_s=0.0, latency_s=0.0)
