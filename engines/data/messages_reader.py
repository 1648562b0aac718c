"""Read rows of messages, one JSON object per line, and say file and line of the first one that is not right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from recipes.problems import OperatorError

ROLES = ("system", "user", "assistant")


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class MessageRow(msgspec.Struct, frozen=True):
    """One example. `group` is the file that it came from, `question` the kind of fact; both may be missing."""

    messages: list[Message]
    group: str = ""
    question: str = ""

    @property
    def prompt(self) -> str:
        """The last thing the user said."""
        return next(turn.content for turn in reversed(self.messages) if turn.role == "user")

    @property
    def answer(self) -> str:
        """The last turn, which is the assistant's."""
        return self.messages[-1].content

    def as_dicts(self) -> list[dict[str, str]]:
        """The turns as a chat template takes them."""
        return [{"role": turn.role, "content": turn.content} for turn in self.messages]


def read_messages(path: Path, split: str) -> Iterator[MessageRow]:
    """The rows of one split, in the file's order.

    Args:
        path: a messages folder.
        split: train, val or test.

    Raises:
        OperatorError: the file is missing, or a row is not right; the message begins `file:line`.
    """
    file = path / f"{split}.jsonl"
    if not file.is_file():
        raise OperatorError(
            f"{file} does not exist", f"a messages folder has {split}.jsonl; choose another split or folder"
        )
    decoder = msgspec.json.Decoder(MessageRow)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if row.strip():
                yield _decode(decoder, row, f"{file}:{number}")


def _decode(decoder: msgspec.json.Decoder[MessageRow], line: bytes, where: str) -> MessageRow:
    try:
        row = decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OperatorError(f"{where}: not a row of messages: {error}", _SHAPE) from error
    problem = _problem(row)
    if problem:
        raise OperatorError(f"{where}: {problem}", _SHAPE)
    return row


_SHAPE = """a row is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}"""


def _problem(row: MessageRow) -> str:
    turns = row.messages
    if unknown := next((turn.role for turn in turns if turn.role not in ROLES), None):
        return f"role {unknown[:40]!r} is not one of {', '.join(ROLES)}"
    if not turns or turns[-1].role != "assistant":
        return "the last turn must be the assistant's"
    if not any(turn.role == "user" for turn in turns):
        return "no turn of the user"
    if any(turn.role == "system" for turn in turns[1:]):
        return "a system turn may only come first"
    if any(not turn.content.strip() for turn in turns):
        return "a turn has no content"
    return ""
