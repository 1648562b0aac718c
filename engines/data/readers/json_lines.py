"""JSON Lines: one JSON value per line. A file that begins with a list is read as a JSON array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.json_file import array_values
from engines.data.readers.json_values import parse_row
from engines.data.readers.lines import FileNote, TextLines, opened


def json_lines_values(file: Path, encoding: str | None, note: FileNote) -> Iterator[tuple[str, Any]]:
    """The values of all lines that are not empty, each with its `file:line`.

    A `BadRowError` is in place of the value of a line that is not JSON, not in the encoding, or too long.

    Raises:
        OperatorError: the file cannot be read.
    """
    with opened(file) as content:
        if content.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":  # type: ignore[attr-defined]
            yield from array_values(file, content, encoding, note)
            return
        place = str(file)
        for number, line in TextLines(content, encoding, note):
            if isinstance(line, BadRowError):
                yield f"{place}:{number}", line
                continue
            if not line or line.isspace():
                continue
            try:
                value = parse_row(line)
            except BadRowError as error:
                value = error
            yield f"{place}:{number}", value
