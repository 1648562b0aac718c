"""A chat without a screen: each prompt is answered on stdout by each model, as text while it comes or as JSON."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from cockpit.talking.conversation import Conversation, Turn
from cockpit.talking.session import ChatSession
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from engines.chatting.lines import (
    SLOWER,
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
from engines.words import ExitCode
from recipes.problems import OperatorError


@dataclass(frozen=True)
class Manner:
    """How a chat without a screen asks and prints.

    Attributes:
        sampling: how tokens are chosen.
        system: the system prompt; may be empty.
        adapter: with the adapter, if there is one.
        as_json: one object for each answer.
        keep: takes each conversation as a row at the end; None keeps none.
    """

    sampling: Sampling
    system: str
    adapter: bool
    as_json: bool
    keep: Callable[[str], None] | None = None


class _Speaker:
    """One model with its conversation."""

    def __init__(self, title: str, job: Job, manner: Manner) -> None:
        self.title, self._manner = title, manner
        self.talk = Conversation(manner.system)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._session = ChatSession(job, self._events.put)

    def start(self) -> None:
        self._session.start()

    def close(self) -> None:
        self._session.close()

    def wait_until_ready(self) -> None:
        """Wait while the model is loaded.

        Raises:
            OperatorError: it could not be loaded.
        """
        live, started = sys.stderr.isatty(), False
        while True:
            match self._events.get():
                case Loading(phase=phase, done=done, total=total) if live:
                    more = f" {fmt.size(done)} of {fmt.size(total)}" if total else ""
                    say(f"{self.title}: {phase}{more}", end="", clear=True)
                    started = True
                case Slowed(slow=True):
                    say(f"{self.title}: {SLOWER}", clear=started)
                case Warned(text=text):
                    say(f"warning: {self.title}: {text}", clear=started)
                case Ready():
                    say("", end="", clear=started)
                    return
                case Failed(error=error, hint=hint):
                    say("", end="", clear=started)
                    raise OperatorError(f"{self.title}: {error}", hint)

    def answer(self, prompt: str, number: int) -> bool:
        """Print the answer to a prompt; False without one."""
        turn = Turn(prompt, number)
        self.talk.turns.append(turn)
        messages = self.talk.messages(with_last_answer=False)
        self._session.ask(
            Ask(id=number, messages=messages, sampling=self._manner.sampling, adapter=self._manner.adapter)
        )
        while True:
            match self._events.get():
                case Piece(text=text) if not self._manner.as_json:
                    print_out(text, end="", flush=True)
                    turn.answer += text
                case Done() as done:
                    self._finish(turn, done)
                    return True
                case Failed(error=error, hint=hint) as failed:
                    turn.failed = error
                    say(f"cockpit: {self.title}: {error}" + (f"\n  {hint}" if hint else ""))
                    if failed.id is None:
                        raise OperatorError("the model has ended")
                    return False
                case Slowed(slow=True):
                    say(f"{self.title}: {SLOWER}")
                case Begun() | Slowed() | Piece() | Loading() | Ready() | Warned():
                    pass

    def _finish(self, turn: Turn, done: Done) -> None:
        if self._manner.as_json:
            print_json(
                {"model": self.title, "prompt": turn.prompt, **msgspec.to_builtins(done)}, indent=None, flush=True
            )
        else:
            # The whole text may end with a character that the pieces still owed.
            owed = done.text[len(turn.answer) :] if done.text.startswith(turn.answer) else ""
            print_out(owed, flush=True)
        turn.answer, turn.done = done.text, done


def talk_without_screen(models: Sequence[tuple[str, Job]], prompts: Iterable[str], manner: Manner) -> ExitCode:
    """Answer each prompt as the next turn of one conversation with each model.

    Args:
        models: titles and jobs.
        prompts: the operator's texts.
        manner: how.

    Raises:
        OperatorError: a model cannot be loaded.
    """
    speakers = [_Speaker(title, job, manner) for title, job in models]
    code = ExitCode.DONE
    try:
        for speaker in speakers:
            speaker.start()
        for speaker in speakers:
            speaker.wait_until_ready()
        for number, prompt in enumerate(prompts, start=1):
            for speaker in speakers:
                if len(speakers) > 1 and not manner.as_json:
                    print_out(f"{speaker.title}:")
                if not speaker.answer(prompt, number):
                    code = ExitCode.FAILED
        if manner.keep is not None:
            for speaker in speakers:
                manner.keep(speaker.talk.row())
    finally:
        for speaker in speakers:
            speaker.close()
    return code
