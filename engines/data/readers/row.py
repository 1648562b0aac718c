"""A row of messages: what every shape of data becomes, and what every such row must hold."""

from __future__ import annotations

import msgspec

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


def problem_of(row: MessageRow) -> str:
    """What keeps a row from being trained on; empty when nothing does."""
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
