"""A task: a prompt, the expected answer, and the checks that an answer must pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One check of an answer: its kind (a name of `engines.judging.checks.KINDS`), and its settings."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One row of a test file.

    Attributes:
        key: identifies the prompt: its SHA-256, and which one it is among equal prompts.
        where: file and line, for messages.
        messages: the conversation before the answer; the last turn is not the assistant's.
        tools: JSON schemas of functions that the answer may call.
        expected: the expected answer; empty if the checks need none.
        checks: all of them must pass.
        name: the row's own id; empty without one.
        sample_of: the key of the task of which this is another answer; empty for the first one.
    """

    key: str
    where: str
    messages: tuple[Message, ...]
    expected: str
    checks: tuple[Check, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    sample_of: str = ""

    @property
    def prompt(self) -> str:
        """The last message, for lists and screens."""
        return str(self.messages[-1].get("content") or "")


def repeats(key: str) -> bool:
    """Whether a task's prompt is that of an earlier task of its file.

    The same prompt gets the same answer, so such a row is no evidence of its own.
    """
    return any(part.isdecimal() for part in key.split(".")[1:])


def sampled(tasks: Sequence[Task], count: int) -> list[Task]:
    """Each task as many times as it is to be answered; the first of them is the task itself."""
    return [
        task if number == 1 else replace(task, key=f"{task.key}.sample{number}", sample_of=task.key)
        for task in tasks
        for number in range(1, count + 1)
    ]


@dataclass(frozen=True)
class Verdict:
    """The result of one check. `passed` is None where the check itself failed, so that nothing is known."""

    check: str
    passed: bool | None
    reason: str = ""


def prompt_key(messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...]) -> str:
    """SHA-256 (hex) of a prompt."""
    text = json.dumps([list(messages), list(tools)], sort_keys=True, ensure_ascii=True, allow_nan=False, default=dict)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
