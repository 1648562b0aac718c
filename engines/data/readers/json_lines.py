"""JSON Lines: one JSON value per line. A file that begins with a list is read as a JSON array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.json_stream import array_values
from engines.data.readers.json_values import parse_row
from engines.data.readers.lines import FileNote, TextLines, opened


def json_lines_values(file: Path, encoding: str | None, note: FileNote) -> Iterator[tuple[str, Any]]:
    """The values of all lines that are not empty, each with its `file:line`.

    Where the note has `quick`, a row that it reads is in place of its value.
    A `BadRowError` is in place of the value of a line that is not JSON, not in the encoding, or too long.

    Raises:
        OperatorError: the file cannot be read.
    """
    with opened(file) as content:
        if content.peek(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":  # type: ignore[attr-defined]
            yield from array_values(file, content, encoding, note)
            return
        place = str(file)
        lines = TextLines(content, encoding, note)
        if lines.encoding != "utf-8":
            yield from ((f"{place}:{number}", _parsed(line)) for number, line in lines if not _is_empty(line))
            return
        for number, raw in lines.as_bytes():
            if note.quick is not None and isinstance(raw, bytes) and (row := note.quick(raw)) is not None:
                yield f"{place}:{number}", row
            elif isinstance(raw, BadRowError):
                yield f"{place}:{number}", raw
            elif not raw.isspace():
                yield f"{place}:{number}", _parsed(lines.decoded(raw))


def _is_empty(line: str | BadRowError) -> bool:
    return isinstance(line, str) and (not line or line.isspace())


def _parsed(line: str | BadRowError) -> Any:
    if isinstance(line, BadRowError):
        return line
    try:
        return parse_row(line)
    except BadRowError as error:
        return error
