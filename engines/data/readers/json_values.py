"""JSON as data must have it: no key twice in an object, no number that is not finite, no text that is not Unicode."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from engines.data.readers.bad_row import BadRowError
from recipes.problems import printable


class _DuplicateKeyError(ValueError):
    """An object has a key twice; `args[0]` is the key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(next(key for key, count in counts.items() if count > 1))
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse_row(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        BadRowError: the text is not JSON, an object has a key twice, or it is nested too deeply.
    """
    try:
        value, end = DECODER.raw_decode(text, _skip_space(text, 0))
        end = _skip_space(text, end)
        if end != len(text):
            raise BadRowError(
                f"not JSON: {printable(text[end : end + 40])!r} follows the value at column {end + 1}", "not JSON"
            )
    except (ValueError, RecursionError) as error:
        raise json_problem(error) from error
    return value


def json_problem(error: Exception) -> BadRowError:
    """The problem of a text that `DECODER` refuses."""
    if isinstance(error, BadRowError):
        return error
    if isinstance(error, _DuplicateKeyError):
        key = printable(str(error), 80)
        return BadRowError(f"an object has the key {key} twice", "an object has a key twice", "keep one of the two")
    if isinstance(error, RecursionError):
        return BadRowError("not JSON: nested too deeply", "not JSON")
    if isinstance(error, json.JSONDecodeError):
        return BadRowError(f"not JSON: {error.msg} at column {error.colno}", "not JSON")
    return BadRowError(f"not JSON: {printable(str(error), 200)}", "not JSON")


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
