"""A row of messages: the common form of every shape of data, and its rules."""

from __future__ import annotations

import msgspec

ROLES = ("system", "user", "assistant")


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class MessageRow(msgspec.Struct, frozen=True):
    """One example. `group` is its source file, `question` its kind of fact; both may be missing."""

    messages: list[Message]
    group: str = ""
    question: str = ""

    @property
    def prompt(self) -> str:
        """The content of the user's last turn."""
        return next(turn.content for turn in reversed(self.messages) if turn.role == "user")

    @property
    def answer(self) -> str:
        """The content of the last turn, which is the assistant's."""
        return self.messages[-1].content

    def as_dicts(self) -> list[dict[str, str]]:
        """The turns in the form that a chat template takes."""
        return [{"role": turn.role, "content": turn.content} for turn in self.messages]


def problem_of(row: MessageRow) -> str:
    """Why a row cannot be used for training; empty when it can."""
    turns = row.messages
    if unknown := next((turn.role for turn in turns if turn.role not in ROLES), None):
        return f"role — got {unknown[:40]!r}; allowed {', '.join(ROLES)}"
    if not turns or turns[-1].role != "assistant":
        return "the last turn must be the assistant's"
    if not any(turn.role == "user" for turn in turns):
        return "the row has no user turn"
    if any(turn.role == "system" for turn in turns[1:]):
        return "a system turn must come first"
    if any(not turn.content.strip() for turn in turns):
        return "a turn has no content"
    return ""
