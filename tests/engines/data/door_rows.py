"""Rows for the tests of the data door, and functions that read them through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.data.door import (
    DataSource,
    ReadCounts,
    read_rows,
)
from engines.data.readers.row import MessageRow, Row
from recipes.problems import OperatorError

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "größer"}]}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Sande"}}}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}


def put(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows_of(place: Path, split: str = "", **fields: Any) -> list[Row]:
    return [located.row for located in read_rows(DataSource(place, **fields), split, ReadCounts())]


def row_of(tmp_path: Path, value: Any, **fields: Any) -> Row:
    (row,) = rows_of(put(tmp_path / "one.jsonl", value), **fields)
    return row


def turns(row: Row) -> list[tuple[str, str]]:
    assert isinstance(row, MessageRow)
    return [(turn.role, turn.content) for turn in row.messages]


def refusal(tmp_path: Path, value: Any, **fields: Any) -> str:
    with pytest.raises(OperatorError) as raised:
        row_of(tmp_path, value, **fields)
    return f"{raised.value.message} | {raised.value.hint}"
