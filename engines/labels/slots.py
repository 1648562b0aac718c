"""A conversation with placeholders instead of its texts: where a template puts each text is then found exactly.

White space around a text stays, and so do marks such as `<think>` in it, so that a template that trims, or that splits
an answer from its reasoning, does the same with the placeholders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import msgspec

Turn = Mapping[str, Any]
SlotKind = Literal["content", "inner", "reasoning", "call", "name", "schema"]

_DIGITS = 5
_THINK = re.compile(r"(</?think>)")
_TAG = re.compile(r"(</?[^<>\s]{1,40}>|\[/?[A-Z_]{2,20}\])")


class Slot(msgspec.Struct, frozen=True):
    """One text of a conversation and its placeholder.

    Attributes:
        name: the placeholder.
        text: what it stands for, without white space around it.
        turn: index of its turn; -1 for a text of the tools.
        kind: `content` begins a turn's content, `inner` follows a mark in it, `reasoning` is the text between think
            marks or of `reasoning_content`, `call` an argument and `name` the name of a tool call, `schema` a text in
            the description of a tool.
    """

    name: str
    text: str
    turn: int
    kind: SlotKind


@dataclass(frozen=True)
class Marked:
    """A conversation with placeholders.

    Attributes:
        turns: the conversation, in the form that a template gets.
        tools: the descriptions of tools.
        slots: its texts by placeholder.
        pattern: matches every placeholder.
    """

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    slots: dict[str, Slot]
    pattern: re.Pattern[str]

    @property
    def key(self) -> str:
        """Equal for conversations of the same structure."""
        return repr((self.turns, self.tools))


@dataclass(frozen=True)
class Form:
    """How a template gets turns: content as text or as a list of parts, arguments of a call as an object or as JSON."""

    parts: bool = False
    json_arguments: bool = False


FORMS = (Form(), Form(json_arguments=True), Form(parts=True), Form(parts=True, json_arguments=True))
"""In the order in which they are tried; the first is OpenAI's, with arguments as an object."""


def in_form(turns: Sequence[Turn], form: Form) -> list[dict[str, Any]]:
    """The turns of a conversation as a template gets them."""
    return [_in_form(turn, form) for turn in turns]


def _in_form(turn: Turn, form: Form) -> dict[str, Any]:
    found = {"content": "", **turn}
    if form.parts:
        found["content"] = [{"type": "text", "text": found["content"]}]
    if form.json_arguments and "tool_calls" in found:
        found["tool_calls"] = [_json_arguments(call) for call in found["tool_calls"]]
    return found


def _json_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    text = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def marked(
    turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], *, fine: bool, dangerous: re.Pattern[str]
) -> Marked:
    """A conversation with placeholders for its texts.

    Args:
        turns: its turns.
        tools: descriptions of tools; a text in them is replaced only if it spells a control token.
        fine: keep every mark such as `<name>` in a text, not only think marks in answers.
        dangerous: matches the texts of control tokens.
    """
    return _Marker(turns, tools, fine, dangerous).run()


def _parts(text: str, pattern: re.Pattern[str], calls: bool) -> list[str]:
    """A text divided at its marks. Marks behind its last words belong to them, so that they end with a placeholder;
    before calls they do not."""
    parts = pattern.split(text)
    words = [number for number, part in enumerate(parts) if part.strip() and not pattern.fullmatch(part)]
    if calls:
        return parts
    return [*parts[: words[-1]], "".join(parts[words[-1] :])] if words else []


def _unused_stem(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> str:
    """A beginning of placeholders that no text of the conversation contains."""
    values = [value for turn in turns for value in turn.values()]
    if not tools and not any("Qz" in value if isinstance(value, str) else True for value in values):
        return "Qz0h"
    everything = repr((list(turns), list(tools)))  # no escape of it divides or makes letters
    return next(stem for stem in (f"Qz{number}h" for number in count()) if stem not in everything)


class _Marker:
    def __init__(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], fine: bool, dangerous: re.Pattern[str]
    ) -> None:
        self._turns, self._tools = turns, tools
        self._fine, self._dangerous = fine, dangerous
        self._stem = _unused_stem(turns, tools)
        self._slots: dict[str, Slot] = {}
        self._turn = -1

    def run(self) -> Marked:
        tools = [self._schema(tool) for tool in self._tools]
        turns = []
        for number, turn in enumerate(self._turns):
            self._turn = number
            turns.append(self._marked_turn(turn))
        return Marked(turns, tools, self._slots, re.compile(f"{self._stem}[0-9]{{{_DIGITS}}}z"))

    def _marked_turn(self, turn: Turn) -> dict[str, Any]:
        found = dict(turn)
        if found.get("reasoning_content"):
            found["reasoning_content"] = self._plain(found["reasoning_content"], "reasoning")
        if found.get("content"):
            found["content"] = self._content(found["content"], found["role"] == "assistant", "tool_calls" in found)
        if found.get("tool_calls"):
            found["tool_calls"] = [self._call(call) for call in found["tool_calls"]]
        for key in ("name", "tool_call_id"):
            if key in found:
                found[key] = self._schema(found[key])
        return found

    def _content(self, text: str, answer: bool, calls: bool) -> str:
        pattern = _TAG if self._fine else _THINK if answer else None
        parts = _parts(text, pattern, calls) if pattern is not None and pattern.search(text) else []
        if pattern is None or not parts:
            return self._plain(text, "content")
        kind: SlotKind = "content"
        thinking = answer and "</think>" in text and "<think>" not in text.partition("</think>")[0]
        found = []
        for part in parts:
            kept = answer and _THINK.fullmatch(part)  # reasoning of the model itself, whatever kind of token marks it
            if kept or (pattern.fullmatch(part) and not self._dangerous.search(part)):
                thinking = part == "<think>" or (thinking and part != "</think>")
                kind = "inner"
                found.append(part)
            else:
                found.append(self._plain(part, "reasoning" if thinking else kind))
        return "".join(found)

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        given = {**function, "name": self._plain(str(function.get("name", "")), "name")}
        if "arguments" in function:
            given["arguments"] = self._argument(function["arguments"])
        return {**call, "function": given}

    def _argument(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._plain(value, "call")
        if isinstance(value, Mapping):
            return {self._key(key): self._argument(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._argument(one) for one in value]
        return value

    def _key(self, key: str) -> str:
        return self._plain(key, "call") if self._dangerous.search(key) else key

    def _schema(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._plain(value, "schema") if self._dangerous.search(value) else value
        if isinstance(value, Mapping):
            return {self._schema(key): self._schema(one) for key, one in value.items()}
        return [self._schema(one) for one in value] if isinstance(value, list) else value

    def _plain(self, text: str, kind: SlotKind) -> str:
        """The placeholder of a text, with the white space around the text."""
        core = text.strip()
        if not core:
            return text
        name = f"{self._stem}{len(self._slots):0{_DIGITS}}z"
        self._slots[name] = Slot(name, core, self._turn, kind)
        if len(core) == len(text):
            return name
        start = text.index(core)
        return f"{text[:start]}{name}{text[start + len(core) :]}"
