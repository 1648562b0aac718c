"""Changes one value in a recipe's text and nothing else: comments, order, spacing and spellings stay as they are.

The scanner finds the position of every value, so an edit replaces, inserts or removes exactly that piece of text. Each
edit is verified: the parsed result differs from the old one in that value only.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

from recipes.problems import OperatorError, RecipeError
from recipes.spelling import spell, spell_key
from recipes.toml_read import parse
from recipes.toml_scan import KeyPath, TomlIndex

_NAME = "recipe"


class EditError(OperatorError):
    """The text cannot be changed at that path."""


def set_value(text: str, path: KeyPath, value: Any) -> str:
    """The text with the value at `path` set; unchanged, to the byte, if it already has that value.

    Raises:
        EditError: the value cannot be written there.
        RecipeError: the text is not TOML.
    """
    data, index = parse(text, _NAME)
    if _same(_at(data, path), value):
        return text
    try:
        spelled = spell(value)
    except TypeError as error:
        raise EditError(str(error)) from None
    if path in index.values:
        span = index.values[path]
        new = text[: span.start] + spelled + text[span.end :]
    else:
        bare = unset_value(text, path)
        new = _inserted(bare, parse(bare, _NAME)[1], path, spelled)
    expected = copy.deepcopy(data)
    _put(expected, path, value)
    return _verified(new, expected)


def unset_value(text: str, path: KeyPath) -> str:
    """The text without the key at `path` and everything under it; unchanged if there is no such key.

    Raises:
        EditError: the key cannot be removed.
        RecipeError: the text is not TOML.
    """
    data, index = parse(text, _NAME)
    if _at(data, path) is _ABSENT:
        return text
    expected = copy.deepcopy(data)
    _drop(expected, path)
    new = text
    while found := _removal(new, index, path):
        new = new[: found[0]] + new[found[1] :]
        index = parse(new, _NAME)[1]
    return _verified(new, expected, path)


def diff_lines(old: str, new: str) -> list[str]:
    """The changed lines: `- ` before a removed line, `+ ` before an added one, `  ` before a line of context."""
    lines = difflib.unified_diff(_lines(old), _lines(new), lineterm="", n=1)
    return [f"{line[0]} {line[1:]}" for line in list(lines)[2:] if not line.startswith("@@")]


def _lines(text: str) -> list[str]:
    """Lines as TOML counts them; `splitlines` also splits at separators that TOML does not have."""
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _inserted(text: str, index: TomlIndex, path: KeyPath, spelled: str) -> str:
    """The text with a new key in the innermost table around `path` that the text contains."""
    for length in range(len(path) - 1, -1, -1):
        rest = path[length:]
        if any(isinstance(part, int) for part in rest):
            raise EditError("there is no such item in the list")
        statement = f"{spell_key(*rest)} = {spelled}"
        span = index.values.get(path[:length]) if length else None
        if span is not None:
            if text[span.start] != "{":
                raise EditError(f"{path[length - 1]} is not a table")
            inner = text[span.start + 1 : span.end - 1].strip()
            inner = f"{inner}, {statement}" if inner else statement
            return f"{text[: span.start]}{{ {inner} }}{text[span.end :]}"
        if path[:length] in index.bodies:
            return _new_line(text, index.bodies[path[:length]], statement, first=not length and not index.bodies[()])
    raise EditError("there is no such table")


def _new_line(text: str, end: int, statement: str, first: bool) -> str:
    """The text with a statement on a new line after offset `end`, indented like the line before it."""
    newline = "\r\n" if "\r\n" in text else "\n"
    if first:
        return f"{statement}{newline}{text}"
    start = text.rfind("\n", 0, end) + 1
    line = text[start:end]
    indent = line[: len(line) - len(line.lstrip(" \t"))]
    return f"{text[:end]}{newline}{indent}{statement}{text[end:]}"


def _removal(text: str, index: TomlIndex, path: KeyPath) -> tuple[int, int] | None:
    """The next piece of text to remove for `path`: a statement, a member of an inline table, or a table."""
    under = [key for key in index.keys if key[: len(path)] == path]
    headers = [table for table in index.headers if table[: len(path)] == path]
    if headers:
        return _line_start(text, index.headers[headers[0]]), _next_line(text, index.bodies[headers[0]])
    if not under:
        return None
    start, end = index.keys[under[0]], index.values[under[0]].end
    inline = any(_is_inline(text, index, under[0][:length]) for length in range(1, len(under[0])))
    return _member(text, start, end) if inline else (_line_start(text, start), _next_line(text, end))


def _is_inline(text: str, index: TomlIndex, path: KeyPath) -> bool:
    return path in index.values and text[index.values[path].start] == "{"


def _member(text: str, start: int, end: int) -> tuple[int, int]:
    """A member of an inline table with one of its commas."""
    after = re.compile(r"\s*,\s*").match(text, end)
    if after:
        return start, after.end()
    before = text[:start].rstrip()
    if before.endswith(","):
        return len(before) - 1, end
    return len(before), end + len(text[end:]) - len(text[end:].lstrip())


def _line_start(text: str, offset: int) -> int:
    return text.rfind("\n", 0, offset) + 1


def _next_line(text: str, offset: int) -> int:
    end = text.find("\n", offset)
    return len(text) if end < 0 else end + 1


_ABSENT = object()


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
    return data


def _put(data: Any, path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {}) if isinstance(data, dict) else data[part]
    data[path[-1]] = value


def _drop(data: Any, path: KeyPath) -> None:
    del _at(data, path[:-1])[path[-1]]


def _same(one: Any, other: Any) -> bool:
    """Equal in value and type, NaN equal to NaN."""
    if isinstance(one, dict) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and bool(one == other)


def _verified(text: str, expected: dict[str, Any], removed: KeyPath = ()) -> str:
    """The edited text, if it parses to the expected data.

    A table that a removal leaves empty may stay in the text or not.
    """
    try:
        data, _ = parse(text, _NAME)
    except RecipeError as error:
        raise EditError("the value cannot be written there", str(error)) from None
    for length in range(len(removed) - 1, 0, -1):
        if _at(expected, removed[:length]) == {} and _at(data, removed[:length]) is _ABSENT:
            _drop(expected, removed[:length])
    if not _same(data, expected):
        raise EditError("the value cannot be changed without changing another one", "edit the file by hand")
    return text
