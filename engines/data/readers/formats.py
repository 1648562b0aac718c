"""The data formats that Cockpit reads: a container gives values, a shape converts each to a row.

A new format needs one file beside this one and an entry in one of the two lists here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.data.readers import alpaca, chatml, mapped, messages, plain_text, preference, prompt_completion, sharegpt
from engines.data.readers.delimited import delimited_values
from engines.data.readers.json_file import json_values
from engines.data.readers.json_lines import json_lines_values
from engines.data.readers.lines import FileNote
from engines.data.readers.reading import COMMON, Reading
from engines.data.readers.row import Row
from engines.data.readers.tables import arrow_values, parquet_values
from engines.inputs.data_place import suffix_of


@dataclass(frozen=True)
class Container:
    """A kind of file.

    Attributes:
        name: its name in errors and documentation.
        suffixes: endings of the file names; each may have .gz behind it.
        values: streams the file's rows in order, each with its place (`file:line`), from the file, the encoding that
            the recipe names, and a note to fill. In place of a row that cannot be decoded stands a `BadRowError`.
    """

    name: str
    suffixes: tuple[str, ...]
    values: Callable[[Path, str | None, FileNote], Iterator[tuple[str, Any]]]


@dataclass(frozen=True)
class Shape:
    """The form of a row.

    Attributes:
        name: its name in recipes, errors and documentation.
        marks: keys that identify the shape: its rows have all of them.
        keys: all keys that it understands, those that every shape has included.
        example: an example row, for errors.
        row: converts an object to a row; raises a `BadRowError` that says what is wrong with it.
        recognises: whether an object that has the marks is of this shape.
    """

    name: str
    marks: frozenset[str]
    keys: frozenset[str]
    example: str
    row: Callable[[dict[str, Any], Reading], Row]
    recognises: Callable[[dict[str, Any]], bool] = lambda _value: True


def _shape(name: str, marks: str, module: Any, row: Callable[[dict[str, Any], Reading], Row], example: str) -> Shape:
    return Shape(name, frozenset(marks.split()), COMMON | frozenset(module.KEYS), example, row)


CONTAINERS = (
    Container("JSON Lines", (".jsonl", ".ndjson"), json_lines_values),
    Container("JSON", (".json",), json_values),
    Container("CSV", (".csv", ".tsv"), delimited_values),
    Container("Parquet", (".parquet",), parquet_values),
    Container("Arrow", (".arrow",), arrow_values),
)

SHAPES = (
    _shape(
        "preference",
        "chosen rejected",
        preference,
        preference.preference_row,
        '{"prompt": "…", "chosen": "a good answer", "rejected": "a worse one"}',
    ),
    _shape(
        "messages",
        "messages",
        messages,
        messages.message_row,
        '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
    ),
    _shape(
        "sharegpt",
        "conversations",
        sharegpt,
        sharegpt.sharegpt_row,
        '{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}',
    ),
    _shape(
        "alpaca",
        "instruction output",
        alpaca,
        alpaca.alpaca_row,
        '{"instruction": "…", "input": "…", "output": "…"}',
    ),
    _shape(
        "prompt-completion",
        "prompt completion",
        prompt_completion,
        prompt_completion.prompt_completion_row,
        '{"prompt": "…", "completion": "…"}',
    ),
    Shape(
        "chatml",
        frozenset({"text"}),
        COMMON | frozenset(chatml.KEYS),
        '{"text": "<|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n…<|im_end|>\\n"}',
        chatml.chatml_row,
        chatml.is_chatml,
    ),
    _shape("text", "text", plain_text, plain_text.text_row, '{"text": "…"}'),
)
"""In the order in which a first row is compared with them."""

MAPPED = _shape(
    "columns",
    "user assistant",
    mapped,
    mapped.mapped_row,
    '{"task": {"description": "…"}, "output": "…"} with columns = {user = "task.description", assistant = "output"}',
)
"""The shape of a row whose parts `columns` names."""

_SUFFIXES: Mapping[str, Container] = {suffix: container for container in CONTAINERS for suffix in container.suffixes}


def container_of(file: Path) -> Container | None:
    """The container of a file, by its name; None for a file of no known kind."""
    return _SUFFIXES.get(suffix_of(file.name))


def shape_of(value: Any, columns: Mapping[str, str] = {}) -> Shape | None:
    """The shape whose marks an object has; None when no marks match."""
    if not isinstance(value, dict):
        return None
    if "user" in columns:
        return MAPPED
    fitting = [shape for shape in SHAPES if shape.marks <= value.keys() and shape.recognises(value)]
    filled = [shape for shape in fitting if all(value[key] is not None for key in shape.marks)]
    return next(iter(filled or fitting), None)


def shape_named(name: str) -> Shape:
    """The shape of a name, as recipes have it."""
    return next(shape for shape in SHAPES if shape.name == name)
