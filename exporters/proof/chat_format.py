"""Converts a regular chat template to the text before and after each message.

Other runtimes have other template languages. The parts of a template are found by rendering conversations of marked
messages, and are accepted only if they reproduce what the template itself renders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, str]
_MARK = {"system": "SYS7f3a", "user": "USR9c1e", "assistant": "ANS4d8b"}
_CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "one"),),
    (("user", "one"), ("assistant", "two"), ("user", "three")),
    (
        ("system", "zero"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "four"),
        ("user", "five"),
    ),
)


@dataclass(frozen=True)
class ChatFormat:
    """Text around messages: `before[role] + content + after[role]`, then `opening` where the answer begins.

    `system` is the template's default system message; empty if it has none.
    """

    before: Mapping[str, str]
    after: Mapping[str, str]
    opening: str
    system: str = ""

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, up to the beginning of the answer."""
        if self.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages]
        return "".join(parts) + self.opening


def chat_format(tokenizer: Any) -> ChatFormat | None:
    """The regular form of a tokenizer's chat template, without the begin token; None if it has none.

    Args:
        tokenizer: a transformers tokenizer, with or without a chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    wanted = [[{"role": role, "content": text} for role, text in messages] for messages in _CONVERSATIONS]
    try:
        for found in _candidates(tokenizer):
            if all(found.render(messages) == _render(tokenizer, messages) for messages in wanted):
                return found
    except Exception:  # noqa: BLE001 - a template is the model author's program and may raise anything
        return None
    return None


def _candidates(tokenizer: Any) -> Iterator[ChatFormat]:
    """Ways to divide the text between two messages into the end of one and the beginning of the next."""
    roles = ("system", "user", "assistant", "user")
    marked = [{"role": role, "content": _MARK[role]} for role in roles]
    opened, closed = _render(tokenizer, marked), _render(tokenizer, marked, opened=False)
    opening = opened[len(closed) :] if opened.startswith(closed) else ""
    first, after_system, after_user, after_answer, last = _split(opened, [_MARK[role] for role in roles])
    user_end = last[: len(last) - len(opening)]
    alone = _split(_render(tokenizer, marked[1:2]), [_MARK["user"]])[0]
    for beginning in (alone, after_system.removeprefix(user_end)):
        if after_user.startswith(user_end) and after_system.endswith(beginning) and after_answer.endswith(beginning):
            before = {"system": first, "user": beginning, "assistant": after_user[len(user_end) :]}
            after = {
                "system": after_system[: len(after_system) - len(beginning)],
                "user": user_end,
                "assistant": after_answer[: len(after_answer) - len(beginning)],
            }
            yield ChatFormat(before, after, opening, _default_system(alone, before, after))


def _default_system(alone: str, before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The default system message: the text that the template puts only before the first question."""
    extra = alone[: len(alone) - len(before["user"])] if alone.endswith(before["user"]) else ""
    head, tail = before["system"], after["system"]
    regular = len(extra) > len(head) + len(tail) and extra.startswith(head) and extra.endswith(tail)
    return extra[len(head) : len(extra) - len(tail)] if regular else ""


def _split(text: str, marks: Sequence[str]) -> list[str]:
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ValueError("the template changes or drops a message")
        parts.append(part)
    return [*parts, text]


def _render(tokenizer: Any, messages: Sequence[Message], *, opened: bool = True) -> str:
    text: str = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=opened)
    begin = getattr(tokenizer, "bos_token", None)
    return text.removeprefix(begin) if begin else text
