"""Rows of any form, by the recipe's `columns`: where the user's text, the answer and the other parts are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.reading import COMMON, Reading, marks_of
from engines.data.readers.row import Message, MessageRow
from engines.data.readers.turns import checked, tools_of, turns_of, wrong_type

_POSITION = re.compile(r"-?[0-9]{1,6}")
KEYS = ("user", "assistant", "system", "tools")


def mapped_row(value: dict[str, Any], reading: Reading) -> MessageRow:
    """The row of a value that `Columns.applied` returned.

    Raises:
        BadRowError: the user's text or the answer is missing or is not text.
    """
    turns = []
    for role in ("system", "user", "assistant"):
        text, path = value.get(role), reading.columns.get(role, role)
        if text is None and role == "system":
            continue
        if text is None:
            raise BadRowError(f"{path} — the row has no such value", f"{path} is missing")
        if type(text) is list and role != "system":  # turns, as in prompt and chosen of conversational pairs
            turns += turns_of(text, path, reading.ignored)
            continue
        if not isinstance(text, str):
            raise wrong_type(path, text, "text")
        if text or role != "system":
            turns.append(Message(role, checked(text, path)))
    group, category, name = marks_of(value)
    return MessageRow(turns, tools_of(value.get("tools")), group, category, name)


class Columns:
    """The paths of a recipe's `columns`, ready for many rows."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._paths = [(name, path, path.split(".")) for name, path in columns.items()]
        self._tree: dict[str, Any] = {}
        for _, _, parts in self._paths:
            here = self._tree
            for part in parts:
                here = here.setdefault(part, {})

    def applied(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A row with its parts under the names that shapes know; keys of its own that are used so are left out."""
        found = dict(value)
        for _, path, parts in self._paths:
            if path not in COMMON:
                found.pop(path if path in value else parts[0], None)
        for name, path, parts in self._paths:
            found[name] = value[path] if path in value else _at(value, parts)
        return found

    def unused(self, value: Mapping[str, Any]) -> Iterator[str]:
        """The paths inside of objects that the columns open and that they do not use."""
        return _unused(value, self._tree, "")


def value_at(value: Mapping[str, Any], path: str) -> Any:
    """The value at a path, or of a key that is written so; None if there is nothing."""
    return value[path] if path in value else _at(value, path.split("."))


def _at(value: Any, parts: list[str]) -> Any:
    """The value at a path; None if there is nothing. In a list, a part is a position: 0 is the first, -1 the last."""
    for part in parts:
        if type(value) is list and _POSITION.fullmatch(part):
            place = int(part)
            value = value[place] if -len(value) <= place < len(value) else None
        elif type(value) is dict:
            value = value.get(part)
        else:
            return None
    return value


def _unused(value: Mapping[str, Any], tree: Mapping[str, Any], before: str) -> Iterator[str]:
    for part, below in tree.items():
        inner = value.get(part)
        if below and type(inner) is dict:
            for key in inner.keys() - below.keys():
                yield f"{before}{part}.{key}"
            yield from _unused(inner, below, f"{before}{part}.")
