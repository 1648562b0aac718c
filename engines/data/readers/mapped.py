"""Rows of any form, by the recipe's `columns`: where the user's text, the answer and the other parts are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.reading import COMMON, Reading, at_path, marks_of
from engines.data.readers.row import Message, MessageRow
from engines.data.readers.turns import checked, tools_of, wrong_type

KEYS = ("user", "assistant", "system", "tools")


def mapped_row(value: dict[str, Any], reading: Reading) -> MessageRow:
    """The row of a value that `with_columns` returned.

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
        if not isinstance(text, str):
            raise wrong_type(path, text, "text")
        if text or role != "system":
            turns.append(Message(role, checked(text, path)))
    group, category, name = marks_of(value)
    return MessageRow(turns, tools_of(value.get("tools")), group, category, name)


def with_columns(value: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with its parts under the names that shapes know; keys of its own that are used so are left out."""
    used = {path if path in value else path.partition(".")[0] for path in columns.values()} - COMMON
    found = {key: item for key, item in value.items() if key not in used and key not in columns}
    found |= {name: at_path(value, path) for name, path in columns.items()}
    return found


def unused_paths(value: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    """The paths inside of objects that `columns` opens and that it does not use."""
    paths = {path for path in columns.values() if path not in value and "." in path}
    for path in paths:
        here: Any = value
        before = ""
        for part in path.split("."):
            if not isinstance(here, Mapping):
                break
            if before:
                ends = {before + key for key in here}
                yield from (end for end in ends if not any(p == end or p.startswith(f"{end}.") for p in paths))
            before = f"{before}{part}."
            here = here.get(part)
