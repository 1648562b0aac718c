"""The turns of a chat with one model, and conversations as rows of `messages`, which `data =` of a stage takes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.chatting.lines import Done
from engines.files import open_append
from recipes.problems import OperatorError, printable


@dataclass
class Turn:
    """A prompt and what the model answered.

    Attributes:
        prompt: the operator's text.
        answer: the answer so far.
        done: how it ended; None while it is written, and after a failure.
        failed: why there is no answer; empty if there is one.
        adapter: it was answered with the adapter.
        tokens: of the answer so far.
        request: the id of its request.
    """

    prompt: str
    request: int
    adapter: bool = True
    answer: str = ""
    done: Done | None = None
    failed: str = ""
    tokens: int = 0

    @property
    def is_open(self) -> bool:
        """The model still owes an answer."""
        return self.done is None and not self.failed


@dataclass
class Conversation:
    """A system prompt and the turns after it."""

    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    def messages(self, *, with_last_answer: bool) -> list[dict[str, Any]]:
        """The messages; without the last answer they are the prompt for it. A turn without an answer is left out."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            is_last = turn is self.turns[-1]
            if (turn.done is None or not turn.answer) and not (is_last and not with_last_answer):
                continue
            found.append({"role": "user", "content": turn.prompt})
            if not (is_last and not with_last_answer):
                found.append({"role": "assistant", "content": turn.answer})
        return found

    def row(self) -> str:
        """The conversation as a line of JSON; empty without an answer."""
        messages = self.messages(with_last_answer=True)
        return json.dumps({"messages": messages}, ensure_ascii=False) if len(messages) > bool(self.system) else ""


def append_row(file: Path, row: str) -> None:
    """Add a line to a file, whole.

    Raises:
        OperatorError: it cannot be written.
    """
    try:
        fd = open_append(file)
        try:
            view = memoryview(row.encode("utf-8", errors="replace") + b"\n")
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
    except OSError as error:
        raise OperatorError(f"{printable(str(file), 400)} cannot be written: {error.strerror}") from error
