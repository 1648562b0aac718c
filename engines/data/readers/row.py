"""The rows of every shape of data: a conversation, a text, or a pair of answers of which one is preferred."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

ROLES = ("system", "user", "assistant", "tool")
"""The roles of a turn. Readers write others, such as developer, human or gpt, as one of these."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: its text; empty only beside `tool_calls`, or as the result of a tool.
        reasoning_content: what a reasoning model writes before its answer.
        tool_calls: calls in OpenAI's form, `{"type": "function", "function": {"name": …, "arguments": {…}}}` with an
            optional `id`; arguments are an object, never text.
        tool_call_id: of a tool's turn, the call that it answers.
        name: of the tool, or of the speaker.
        weight: 0 for an assistant's turn that is never scored, else 1.
    """

    role: str
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[dict[str, Any]] = []
    tool_call_id: str = ""
    name: str = ""
    weight: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """The turn in the form that a chat template takes: role and content, and the other keys that are set."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        for key in ("reasoning_content", "tool_calls", "tool_call_id", "name"):
            if value := getattr(self, key):
                found[key] = value
        return found


class MessageRow(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A conversation that ends with the assistant's turn.

    Attributes:
        messages: its turns; a system turn comes first.
        tools: JSON Schemas of functions, in OpenAI's form.
        group: rows of one group belong into one split, such as those of one source file.
        category: what statistics count by, such as a kind of question.
        id: the row's name in its source.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] = []
    group: str = ""
    category: str = ""
    id: str = ""

    @property
    def prompt(self) -> str:
        """The content of the user's last turn."""
        return next(turn.content for turn in reversed(self.messages) if turn.role == "user")

    @property
    def answer(self) -> str:
        """The content of the last turn, which is the assistant's."""
        return self.messages[-1].content

    def as_dicts(self) -> list[dict[str, Any]]:
        """The turns in the form that a chat template takes."""
        return [turn.as_dict() for turn in self.messages]


class TextRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text in which every token is scored; the other attributes are those of `MessageRow`."""

    text: str
    group: str = ""
    category: str = ""
    id: str = ""


class PreferenceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prompt with a preferred answer and another one, each as turns; the other attributes are those of
    `MessageRow`."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] = []
    group: str = ""
    category: str = ""
    id: str = ""


Row: TypeAlias = MessageRow | TextRow | PreferenceRow


def problem_of(row: Row) -> str:
    """Why a row cannot be used; empty when it can."""
    if isinstance(row, TextRow):
        return "" if row.text and not row.text.isspace() else "the text is empty"
    if isinstance(row, MessageRow):
        return _problem_of_turns(row.messages)
    for name, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
        if problem := _problem_of_turns([*row.prompt, *answer]):
            return f"{name}: {problem}"
    return "chosen and rejected are equal" if row.chosen == row.rejected else ""


def _problem_of_turns(turns: list[Message]) -> str:
    role, asked, learnt = "", False, False
    for place, turn in enumerate(turns):
        role = turn.role
        if role == "assistant":
            learnt = learnt or turn.weight != 0
        elif role == "user":
            asked = True
        elif role not in ROLES:
            return f"role — got {role[:40]!r}; allowed {', '.join(ROLES)}"
        elif role == "system" and place:
            return "a system turn must come first"
        if (not turn.content or turn.content.isspace()) and not turn.tool_calls and role != "tool":
            return f"the {role}'s turn {place + 1} has no content"
    if role != "assistant":
        return "the last turn must be the assistant's"
    if not asked:
        return "the row has no user turn"
    return "" if learnt else "every answer has weight 0, so nothing is left to train on"
