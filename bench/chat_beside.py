"""`python -m bench.chat_beside --model DIR --data FILE`: what a chat beside a running training costs it, in step time.

A real run fine-tunes the model. A chat with the same model, or with `--gguf`, is loaded beside it as the chat screen
loads one. In turns it is silent, and answers without a pause; each turn has the steps that lie wholly in it, so the
other load of the machine hits both kinds of turns. At the end the training is stopped, and the chat answers alone.

Rows are not padded, so a step's time is divided by its tokens. The figure is the median beside an answering chat,
divided by the median beside a silent one. The goal is 1.10.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cockpit.launching.launch import launch_text
from cockpit.launching.requests import send_request
from cockpit.talking.session import ChatSession
from engines.chatting.lines import Ask, Done, Event, Failed, Job, Piece, Ready, Sampling
from engines.events.runs import RunEnded
from engines.events.steps import Step
from engines.journal import read_journal
from engines.processor import spent_s
from engines.run_dir.paths import RunDir
from engines.words import Verb

PATIENCE_S = 900.0
FIRST_STEPS = 4
PROMPT = "Tell me in detail how a bicycle works."
RECIPE = """
schema = 1
name = "beside"

[[stage]]
name = "tuned"
kind = "finetune"
model = {model!r}
data = {data!r}
columns = {{ user = "question", assistant = "answer" }}
max_length = {length}
per_device_train_batch_size = {batch}
gradient_accumulation_steps = 1
max_steps = 100000
learning_rate = 1e-4
r = 8
lora_alpha = 16
threads = {threads}
eval_strategy = "no"
save_strategy = "no"
"""


@dataclass
class Chat:
    """A loaded chat whose answers follow one another while `on` is set."""

    job: Job
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    number: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        self.session = ChatSession(self.job, self.events.put)

    def load(self) -> Ready:
        """Start it and wait until it can answer."""
        self.session.start()
        while True:
            event = self.events.get(timeout=PATIENCE_S)
            if isinstance(event, Ready):
                return event
            if isinstance(event, Failed):
                raise SystemExit(f"the chat failed: {event.error} {event.hint}")

    def spent_s(self) -> float:
        """CPU seconds of its processes so far."""
        own = psutil.Process(self.session.pid)
        return sum(spent_s(one.pid) for one in (own, *own.children(recursive=True)))

    def answer_for(self, seconds: float) -> float:
        """Answer without a pause for so long; returns tokens per second, those of prompts not counted."""
        began, before = time.monotonic(), self.tokens
        self._ask()
        seen = 0
        while (left_s := seconds - (time.monotonic() - began)) > 0:
            try:
                event = self.events.get(timeout=left_s)
            except queue.Empty:
                break
            match event:
                case Piece(id=self.number, tokens=tokens):
                    self.tokens, seen = self.tokens + tokens - seen, tokens
                case Done(id=self.number):
                    self._ask()
                    seen = 0
                case Failed(error=error):
                    raise SystemExit(f"the chat failed: {error}")
        spent_s = time.monotonic() - began
        self.session.stop(self.number)
        while not isinstance(self.events.get(timeout=PATIENCE_S), Done):
            pass
        return (self.tokens - before) / spent_s

    def _ask(self) -> None:
        self.number += 1
        messages = [{"role": "user", "content": PROMPT}]
        self.session.ask(Ask(id=self.number, messages=messages, sampling=Sampling(max_new_tokens=256)))


def main() -> int:
    """Measure and print the table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.chat_beside", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--data", type=Path, required=True, help="JSON Lines with question and answer")
    parser.add_argument("--gguf", type=Path, help="chat with this file instead of the folder")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the training")
    parser.add_argument("--chat-threads", type=int, help="of the chat (default: as the chat chooses)")
    parser.add_argument("--turns", type=int, default=6, help="turns of each kind")
    parser.add_argument("--turn-s", type=float, default=20.0, help="seconds of a turn")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    chat = Chat(Job(model=str((options.gguf or options.model).absolute()), threads=options.chat_threads))
    with tempfile.TemporaryDirectory() as folder:
        run = _training(options, Path(folder))
        try:
            table = _beside(options, run, chat)
        except BaseException:
            chat.session.close()
            raise
        finally:
            send_request(run, Verb.STOP, by="bench")
            _wait(lambda: any(isinstance(event, RunEnded) for event in read_journal(run.journal)), "the run's end")
    chat.answer_for(options.turn_s / 4)  # it notices that the training has ended
    table.append(("chat alone", f"{chat.answer_for(options.turn_s):.2f} tokens/s"))
    chat.session.close()
    sys.stdout.write("| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in table))
    return 0


def _training(options: argparse.Namespace, folder: Path) -> RunDir:
    """A run that has made its first steps."""
    text = RECIPE.format(
        model=str(options.model.absolute()),
        data=str(options.data.absolute()),
        length=options.length,
        batch=options.batch,
        threads=options.threads,
    )
    run = launch_text(text, runs_root=folder / "runs", folder=folder)
    _wait(lambda: len(_steps(run)) > FIRST_STEPS, "the first steps")
    return run


def _beside(options: argparse.Namespace, run: RunDir, chat: Chat) -> list[tuple[str, str]]:
    """The rows of the table that need the training."""
    began = time.monotonic()
    ready = chat.load()
    loading = _within(run, began)
    silent, answering, rates, used = [], [], [], []
    for number in range(options.turns):
        began = time.monotonic()
        time.sleep(options.turn_s)
        silent.append(_within(run, began))
        began, spent_s = time.monotonic(), chat.spent_s()
        rates.append(chat.answer_for(options.turn_s))
        used.append((chat.spent_s() - spent_s) / (time.monotonic() - began))
        answering.append(_within(run, began))
        sys.stderr.write(f"  turn {number + 1} of {options.turns}: {_ratio(answering[-1], silent[-1]):.3f}\n")
    pairs = [_ratio(one, other) for one, other in zip(answering, silent, strict=True)]
    quiet, beside = ([each for turn in turns for each in turn] for turns in (silent, answering))
    spread = f"{min(pairs):.3f} to {max(pairs):.3f} in {len(pairs)} pairs of turns, in their median"
    return [
        ("chat", f"{ready.runtime}, {ready.dtype}, threads: {ready.threads}, loaded in {ready.load_s:.0f} s"),
        ("step beside a silent chat", f"{statistics.median(quiet):.3f} ms a token, {len(quiet)} steps"),
        ("step beside an answering chat", f"{statistics.median(beside):.3f} ms a token, {len(beside)} steps"),
        ("ratio", f"{_ratio(beside, quiet):.3f} ({spread} {statistics.median(pairs):.3f})"),
        ("ratio while the chat was loaded", f"{_ratio(loading, quiet):.3f} ({len(loading)} steps)"),
        (
            "chat beside the training",
            f"{statistics.median(rates):.2f} tokens/s with {statistics.median(used):.1%} of a core",
        ),
    ]


def _within(run: RunDir, began: float) -> list[float]:
    """Milliseconds a token of each step that began after a moment of the monotonic clock and has ended."""
    pairs = itertools.pairwise(_steps(run))
    return [1e3 * step.step_s / (step.tokens - last.tokens) for last, step in pairs if step.m - step.step_s >= began]


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(one) / statistics.median(other) if one and other else float("nan")


def _steps(run: RunDir) -> list[Step]:
    return [event for event in read_journal(run.journal) if isinstance(event, Step)] if run.journal.exists() else []


def _wait(fact: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not fact():
        if time.monotonic() > give_up_s:
            raise SystemExit(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
