"""The check `tool_call`: the answer calls the expected functions with equal arguments, in this order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engines.judging.json_checks import MOST_DEPTH, depth_over
from engines.judging.json_schema import canonical
from engines.judging.text_checks import shown

_MARKS = ("[TOOL_CALLS]", "<|python_tag|>", "<tool_call>", "</tool_call>", "<|tool_call|>", "```json", "```")
"""What models write around calls. Most are control tokens, which an answer's text does not have."""
MOST_CALLS = 64


def tool_call(answer: str, expected: str, settings: Mapping[str, Any]) -> str:
    """The calls are equal: names and arguments as JSON values. Returns why not, else empty.

    A call is an object with `name` and `arguments` (or `parameters`), alone, in a list, one after another, or as
    `{"function": {…}}`; arguments may be a text of JSON, as OpenAI's interface has them.
    """
    wanted = calls_in(settings.get("calls") or expected)
    got = calls_in(answer)
    if not got:
        return f"the answer calls no function: {shown(answer)}"
    if len(got) != len(wanted or []):
        return f"the answer calls {len(got)} functions; expected {len(wanted or [])}"
    for number, (one, other) in enumerate(zip(got, wanted or [], strict=True), start=1):
        if canonical(one) != canonical(other):
            return f"call {number} is {shown(json.dumps(one))}; expected {shown(json.dumps(other))}"
    return ""


def calls_in(given: Any) -> list[dict[str, Any]] | None:
    """The calls of an answer's text or of a JSON value, each with name and arguments; None without a call."""
    values = _values(given) if isinstance(given, str) else given if isinstance(given, list) else [given]
    if not values or len(values) > MOST_CALLS:
        return None
    calls = [_call(one) for one in values]
    return [one for one in calls if one is not None] if None not in calls else None


def _values(text: str) -> list[Any]:
    """The JSON values of a text that has nothing but them and marks; empty for other texts."""
    for mark in _MARKS:
        text = text.replace(mark, " ")
    decoder = json.JSONDecoder()
    found: list[Any] = []
    text = text.strip()
    while text and len(found) <= MOST_CALLS:
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return []
        found.append(value)
        text = text[end:].lstrip(" \n\r\t,;")
    if len(found) == 1 and isinstance(found[0], list):
        return found[0]
    return [] if any(depth_over(one, MOST_DEPTH) for one in found) else found


def _call(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or depth_over(value, MOST_DEPTH):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return {"name": value["name"], "arguments": arguments}
