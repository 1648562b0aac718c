"""The data formats that Cockpit reads: a container gives values, a shape converts each to a row of messages.

A new format needs one file beside this one and an entry in one of the two lists here.
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
        name: its name in errors and documentation.
        suffix: suffix of the file names.
        values: streams the file's rows in order, each with its place (`file:line`). A row that cannot be decoded raises
            an `OperatorError` that names the place.
    """

    name: str
    suffix: str
    values: Callable[[Path], Iterator[tuple[str, Any]]]


@dataclass(frozen=True)
class Shape:
    """The form of a conversation in a row.

    Attributes:
        name: its name in errors and documentation.
        marks: keys that identify the shape: its rows have all of them. No two shapes have the same marks.
        example: an example row, for errors.
        row: converts a value to a row of messages; raises a ValueError that says what is wrong with the value.
    """

    name: str
    marks: frozenset[str]
    example: str
    row: Callable[[Any], MessageRow]


CONTAINERS = (Container("JSON Lines", ".jsonl", jsonl_values),)
"""In the order in which the reader looks for a split's file."""

SHAPES = (
    Shape(
        "messages",
        frozenset({"messages"}),
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
        message_row,
    ),
)
"""Cockpit itself writes the first shape. A value without any shape's marks is refused as a bad row of the first."""


def shape_of(value: Any) -> Shape:
    """The shape whose marks a value has; the first shape when no marks match."""
    keys = value.keys() if isinstance(value, dict) else ()
    return next((shape for shape in SHAPES if shape.marks.issubset(keys)), SHAPES[0])
