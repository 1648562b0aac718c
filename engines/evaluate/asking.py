"""Asks a model the tasks that have no kept answer yet, and keeps each answer at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.judging.answers import AnswerFile, Kept
from engines.judging.task import Task
from engines.processor import machine_class

Waiting = Callable[[], None]
Progress = Callable[[int, int], None]
"""Takes answered tasks and all tasks; what it raises stops the evaluation, and kept answers stay."""


class Answerer(Protocol):
    """A model that answers.

    Attributes:
        identity: whose answers they are, as JSON data: a file of answers belongs to it.
        batch_size: prompts that are answered together.
        longest: most tokens of a prompt and its answer.
        limit: most new tokens of an answer.
    """

    identity: Mapping[str, Any]
    batch_size: int
    longest: int
    limit: int

    def encode(self, task: Task) -> list[int]:
        """Ids of a task's prompt."""
        ...

    def prepare(self, longest_prompt: int) -> None:
        """Make ready for prompts of up to so many tokens; answers of a first use are not measured."""
        ...

    def answer(self, tasks: Sequence[tuple[Task, list[int]]], waiting: Waiting) -> list[Kept]:
        """Answers to tasks with the ids of their prompts, together."""
        ...

    def after(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the token after so many, float32 [vocabulary]."""
        ...

    def text(self, token: int) -> str:
        """The text of a token, control tokens by their names."""
        ...

    def measured(self) -> dict[str, float]:
        """What the process used: memory and sizes, in bytes."""
        ...


def ask(
    answerer: Answerer, tasks: Sequence[Task], file: Path, progress: Progress, waiting: Waiting = lambda: None
) -> list[Kept]:
    """The answer to every task, in order: kept ones from the file, the others asked now.

    Tasks of similar length are asked together, the longest first, so that exhausted memory shows at the beginning.

    Raises:
        OperatorError: the file has answers of another model or of other settings.
    """
    answers = AnswerFile(file, answerer.identity)
    device = str(answerer.identity.get("device", "cpu"))
    machine = machine_class([] if device == "cpu" else [device])
    try:
        progress(sum(task.key in answers.kept for task in tasks), len(tasks))
        missing = [(task, answerer.encode(task)) for task in tasks if task.key not in answers.kept]
        fitting = []
        for task, ids in missing:
            if len(ids) + answerer.limit <= answerer.longest:
                fitting.append((task, ids))
            else:
                answers.add(_too_long(task, len(ids), answerer))
        fitting.sort(key=lambda one: -len(one[1]))
        if fitting:
            answerer.prepare(len(fitting[0][1]))
        for at in range(0, len(fitting), answerer.batch_size):
            waiting()
            for one in answerer.answer(fitting[at : at + answerer.batch_size], waiting):
                answers.add(msgspec.structs.replace(one, machine=machine))
            progress(sum(task.key in answers.kept for task in tasks), len(tasks))
        return [answers.kept[task.key] for task in tasks]
    finally:
        answers.close()


def _too_long(task: Task, tokens: int, answerer: Answerer) -> Kept:
    problem = (
        f"the prompt has {tokens} tokens, which with {answerer.limit} new ones are more than the model takes"
        f" ({answerer.longest})"
    )
    return Kept(
        key=task.key,
        answer="",
        ended=False,
        prompt_tokens=tokens,
        tokens=0,
        first_token_s=0.0,
        latency_s=0.0,
        problem=problem,
    )
