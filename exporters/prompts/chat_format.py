"""Converts a regular chat template to the text before and after each message.

Other runtimes have other template languages. The parts of a template are found by rendering conversations of marked
messages, and are accepted only if they reproduce what the template itself renders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.chat.rendering import Chat, TemplateRefusedError, render

Message = Mapping[str, str]
_MARK = {"system": "SYS7f3a", "user": "USR9c1e", "assistant": "ANS4d8b"}
_ROLES = ("system", "user", "assistant", "user")
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
    """Text around messages: `start`, `before[role] + content + after[role]` of each, `opening` before the answer.

    `system` is the template's default system message; empty if it has none. `start` is the begin token of a template
    that writes it once, before everything; a template whose messages begin with that token has it in `before`.
    `before` and `after` have no "system" if the template has no messages of that role.
    """

    before: Mapping[str, str]
    after: Mapping[str, str]
    opening: str
    system: str = ""
    start: str = ""

    def render(self, messages: Sequence[Message], *, begin: str = "") -> str:
        """The prompt of a conversation up to the beginning of the answer, without a `begin` that the runtime adds."""
        if self.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = [self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages]
        return self.start.removeprefix(begin) + "".join(parts) + self.opening


def chat_format(tokenizer: Any) -> ChatFormat | None:
    """The regular form of a tokenizer's chat template; None if it has none.

    Args:
        tokenizer: a transformers tokenizer, with or without a chat template.

    Raises:
        TemplateLimitError: the template computes for too long, or needs too much memory.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    return _form(tokenizer, _ROLES, _CONVERSATIONS) or _form(tokenizer, _ROLES[1:], _CONVERSATIONS[:2])


def modelfile_format(tokenizer: Any, begin: str) -> ChatFormat | None:
    """The form that a Modelfile can express; None without one.

    Args:
        tokenizer: a transformers tokenizer.
        begin: the token that the runtime itself puts before every prompt; empty if it puts none.

    Raises:
        TemplateLimitError: as `chat_format`.
    """
    found = chat_format(tokenizer)
    if found is not None and begin and any(text.startswith(begin) for text in found.before.values()):
        return None  # a message's own beginning is the token that the runtime adds: no template can leave it out
    return found


def _form(
    tokenizer: Any, roles: Sequence[str], conversations: Sequence[Sequence[tuple[str, str]]]
) -> ChatFormat | None:
    """The form that renders all conversations as the template does; `roles` are those of the probed conversation."""
    marked = [{"role": role, "content": _MARK[role]} for role in roles]
    question = marked[-1:]
    talks = [[{"role": role, "content": text} for role, text in messages] for messages in conversations]
    chats = [Chat(marked, True), Chat(marked), Chat(question, True), *(Chat(talk, True) for talk in talks)]
    try:
        texts = render(tokenizer, chats)
    except TemplateRefusedError:
        return None
    begin = getattr(tokenizer, "bos_token", None) or ""
    for start in dict.fromkeys(("", begin)):
        if not all(text.startswith(start) for text in texts):
            continue
        try:
            for found in _candidates(roles, start, *(text[len(start) :] for text in texts[:3])):
                if all(found.render(talk) == text for talk, text in zip(talks, texts[3:], strict=True)):
                    return found
        except ValueError:
            continue
    return None


def _candidates(roles: Sequence[str], start: str, opened: str, closed: str, question: str) -> Iterator[ChatFormat]:
    """Ways to divide the text between two messages into the end of one and the beginning of the next.

    Args:
        roles: of the messages: the user's, the assistant's, the user's; before them the system's, if there is one.
        start: the text before all messages, which the next three are without.
        opened: the messages up to the beginning of the answer.
        closed: the same without that.
        question: the last message, up to the beginning of the answer.
    """
    opening = opened[len(closed) :] if opened.startswith(closed) else ""
    first, *between, last = _split(opened, [_MARK[role] for role in roles])
    after_user, after_answer = between[-2:]
    user_end = last[: len(last) - len(opening)]
    alone = _split(question, [_MARK["user"]])[0]
    for beginning in dict.fromkeys((alone, between[0].removeprefix(user_end))):
        before = {"user": beginning, "assistant": after_user[len(user_end) :]}
        after = {"user": user_end, "assistant": after_answer[: len(after_answer) - len(beginning)]}
        fits = after_user.startswith(user_end) and after_answer.endswith(beginning)
        if "system" not in roles:
            if fits and first == beginning:
                yield ChatFormat(before, after, opening, "", start)
        elif fits and between[0].endswith(beginning):
            before = {"system": first, **before}
            after = {"system": between[0][: len(between[0]) - len(beginning)], **after}
            yield ChatFormat(before, after, opening, _default_system(alone, before, after), start)


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
