"""The checks `json` and `json_schema`: the answer is one JSON value, and fits a schema."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from engines.judging.fences import code_of

MOST_DEPTH = 100
"""Levels of nesting of an answer; deeper ones are refused, as no schema needs them."""


def json_value(answer: str) -> Any:
    """The JSON value that an answer is, alone or in a code block.

    Raises:
        ValueError: it is not one JSON value: text around it, NaN, a key twice, nested too deeply.
    """
    text = code_of(answer, "json")
    if not text.strip():
        raise ValueError("the answer is empty")
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_double)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if depth_over(value, MOST_DEPTH):
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels")
    return value


def json_problem(answer: str) -> str:
    """Why an answer is not one JSON value; empty if it is."""
    try:
        json_value(answer)
    except ValueError as error:
        return str(error)
    return ""


def depth_over(value: Any, limit: int) -> bool:
    """Whether a JSON value is nested deeper than `limit`."""
    level = [value]
    for _ in range(limit):
        level = [item for one in level for item in _items(one)]
        if not level:
            return False
    return True


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _no_double(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{double[:80]}" is there twice')
    return made
