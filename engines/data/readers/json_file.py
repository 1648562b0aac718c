"""A JSON file: an array of rows over any number of lines, one object, or several objects one after another.

A file in which the first line is a whole object is read as JSON Lines, so that a bad line does not hide the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.json_lines import json_lines_values
from engines.data.readers.json_stream import array_values
from engines.data.readers.json_values import parse_row
from engines.data.readers.lines import FileNote, opened

_FIRST_LINE_BYTES = 1 << 20


def json_values(file: Path, encoding: str | None, note: FileNote) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON file, each with the line on which it begins; see `array_values` and `json_lines_values`."""
    if _has_an_object_on_its_first_line(file):
        note.container = "JSON Lines"
        yield from json_lines_values(file, encoding, note)
        return
    with opened(file) as content:
        yield from array_values(file, content, encoding, note)


def _has_an_object_on_its_first_line(file: Path) -> bool:
    with opened(file) as content:
        line = content.readline(_FIRST_LINE_BYTES)
    try:
        return isinstance(parse_row(line.decode("utf-8-sig")), dict)
    except (BadRowError, UnicodeDecodeError):
        return False
