"""The formats of data that can be read: a container gives values, a shape makes a row of messages from each.

A new format is one file beside this one and its entry in one of the two lists here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.data.readers.jsonl import jsonl_values
from engines.data.readers.messages import message_row
from engines.data.readers.row import MessageRow


@dataclass(frozen=True)
class Container:
    """A kind of file.

    Attributes:
        name: as errors and documents call it.
        suffix: what the names of such files end with.
        values: the file's rows in their order, each with where it stands (`file:line`), read as a stream. A row that
            cannot be decoded is an `OperatorError` that names the place.
    """

    name: str
    suffix: str
    values: Callable[[Path], Iterator[tuple[str, Any]]]


@dataclass(frozen=True)
class Shape:
    """How a conversation is written in a row.

    Attributes:
        name: as errors and documents call it.
        marks: keys by which a row of this shape is recognized: it has all of them. No two shapes share them.
        example: a row in words, for errors.
        row: the row of messages that a value holds.

    `row` raises a ValueError that says what is wrong with the value.
    """

    name: str
    marks: frozenset[str]
    example: str
    row: Callable[[Any], MessageRow]


CONTAINERS = (Container("JSON Lines", ".jsonl", jsonl_values),)
"""In the order in which a folder is searched for a split's file."""

SHAPES = (
    Shape(
        "messages",
        frozenset({"messages"}),
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
        message_row,
    ),
)
"""The first is what cockpit writes itself; a value that has the marks of none is refused as a wrong one of these."""


def shape_of(value: Any) -> Shape:
    """The shape whose marks a value has; the first of all where it has none's."""
    keys = value.keys() if isinstance(value, dict) else ()
    return next((shape for shape in SHAPES if shape.marks.issubset(keys)), SHAPES[0])
