"""Asks a model the tasks that have no kept answer yet, and keeps each answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engines.judging.answers import Kept
from engines.judging.shared_answers import SharedAnswers
from engines.judging.task import Task
from engines.processor import machine_class
from engines.world import ALONE, World

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
    answerer: Answerer,
    tasks: Sequence[Task],
    file: Path,
    progress: Progress,
    waiting: Waiting = lambda: None,
    world: World = ALONE,
) -> list[Kept]:
    """The answer to every task, in order: kept ones from the file, the others asked now; empty in the processes after
    the first.

    Tasks of similar length are asked together, the longest first, so that exhausted memory shows at the beginning.
    Which ones are together depends on all tasks alone, and not on the number of processes or on answers that are kept:
    the rounding of a batch depends on its rows.

    Args:
        answerer: the model.
        tasks: what it is asked.
        file: of its kept answers.
        progress: of this process's share, with the answers that are kept.
        waiting: called between two tokens, and while other processes answer.
        world: the processes; each answers its share of the batches, and calls this.

    Raises:
        OperatorError: the file has answers of another model or of other settings.
    """
    answers = SharedAnswers(file, answerer.identity, world)
    device = str(answerer.identity.get("device", "cpu"))
    machine = machine_class([] if device == "cpu" else [device])
    try:
        done = sum(task.key in answers.known for task in tasks)
        progress(done, len(tasks))
        encoded = [(task, answerer.encode(task)) for task in tasks] if done < len(tasks) else []
        fitting = [(task, ids) for task, ids in encoded if len(ids) + answerer.limit <= answerer.longest]
        fits = {task.key for task, _ in fitting}
        for task, ids in encoded if world.is_first else ():
            if task.key not in answers.known and task.key not in fits:
                answers.add(_too_long(task, len(ids), answerer))
                done += 1
        share = world.share(_batches(fitting, answerer.batch_size, answers.known))
        if share:
            answerer.prepare(len(share[0][0][1]))
        total = done + sum(map(len, share))
        for batch in share:
            waiting()
            for one in answerer.answer(batch, waiting):
                answers.add(msgspec.structs.replace(one, machine=machine))
            done += len(batch)
            progress(done, total)
        kept = answers.gathered(waiting)
        return [kept[task.key] for task in tasks] if world.is_first else []
    finally:
        answers.close()


def _batches(
    fitting: Iterable[tuple[Task, list[int]]], size: int, known: frozenset[str]
) -> list[list[tuple[Task, list[int]]]]:
    """The batches, without the tasks whose answers are known."""
    ordered = sorted(fitting, key=lambda one: -len(one[1]))
    batches = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    left = [[one for one in batch if one[0].key not in known] for batch in batches]
    return [batch for batch in left if batch]


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
