"""JSON values of any number of lines: the items of an array, or values one after another, as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.json_values import DECODER, json_problem
from engines.data.readers.lines import MAX_ROW_BYTES, FileNote, TextLines, not_text, too_long
from recipes.problems import OperatorError

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_LENIENT = json.JSONDecoder()
"""Finds the end of a value that `DECODER` refuses."""
_LONGEST_TOKEN = 16
"""Characters of the longest word or escape that the end of a chunk may cut."""


def array_values(file: Path, content: BinaryIO, encoding: str | None, note: FileNote) -> Iterator[tuple[str, Any]]:
    """The items of an array, or values one after another, in a stream: memory holds one of them.

    A `BadRowError` is in place of an item with a key twice or a number that is not finite.

    Raises:
        OperatorError: the text is not JSON, not in the encoding, or an item is too long; the message begins
            `file:line`. What follows such a place cannot be read.
    """
    text = _Text(TextLines(content, encoding, note))
    try:
        yield from _items(str(file), text, note)
    except UnicodeDecodeError as error:
        raise _refused(f"{file}:{text.line}", not_text(error, text.encoding)) from error
    except BadRowError as error:
        raise _refused(f"{file}:{text.line}", error) from error


def _refused(where: str, error: BadRowError) -> OperatorError:
    return OperatorError(f"{where}: {error.what}", error.hint)


def _items(file: str, text: _Text, note: FileNote) -> Iterator[tuple[str, Any]]:
    in_array = text.skip_space() == "["
    if in_array:
        note.container = "a JSON array"
        text.advance(1)
        if text.skip_space() == "]":
            return
    first = True
    while following := text.skip_space():
        if in_array and not first:
            if following == "]":
                text.advance(1)
                if text.skip_space():
                    raise BadRowError("not JSON: text follows the end of the array", "not JSON")
                return
            if following != ",":
                raise BadRowError("not JSON: a comma is missing between two rows", "not JSON")
            text.advance(1)
            text.skip_space()
        first = False
        where = f"{file}:{text.line}"
        yield where, text.value()
    if in_array:
        raise BadRowError("not JSON: the array does not end", "not JSON", "the file may be incomplete")


class _Text:
    """A text in chunks, with a place in it."""

    def __init__(self, lines: TextLines) -> None:
        self.encoding = lines.encoding
        self.line = 1
        self._chunks = lines.chunks(_CHUNK)
        self._buffer = ""
        self._at = 0

    def advance(self, count: int) -> None:
        """Move on by a number of characters of the buffer."""
        self.line += self._buffer.count("\n", self._at, self._at + count)
        self._at += count

    def skip_space(self) -> str:
        """Move to the next character that is not white space, and return it; empty at the end."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            self.advance(found.end() - self._at if found else 0)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(1):
                return ""

    def value(self) -> Any:
        """The value at this place, or the `BadRowError` of a value whose end is known; moves behind it.

        Raises:
            BadRowError: there is no value here, or it is too long; `line` is then the line of the mistake.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                self._need_more(error)
                continue
            except (ValueError, RecursionError) as error:
                value = json_problem(error)
                try:
                    _, end = _LENIENT.raw_decode(self._buffer, self._at)
                except json.JSONDecodeError as inner:
                    self._need_more(inner)
                    continue
                except RecursionError:
                    raise value from error
            self.advance(end - self._at)
            return value

    def _need_more(self, error: json.JSONDecodeError) -> None:
        """Read on after a mistake that may be the end of the buffer.

        Raises:
            BadRowError: it is a mistake, or the value is too long.
        """
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._buffer) - _LONGEST_TOKEN
        length = len(self._buffer) - self._at
        if cut and length > MAX_ROW_BYTES:
            raise too_long()
        if not cut or not self._more(max(_CHUNK, length)):
            self.advance(max(0, min(error.pos, len(self._buffer)) - self._at))
            raise BadRowError(f"not JSON: {error.msg}", "not JSON")

    def _more(self, count: int) -> bool:
        """Read at least so many characters more of the text, if there are any; False at its end."""
        parts = [self._buffer[self._at :]]
        found = 0
        while found < count and (part := next(self._chunks, None)) is not None:
            parts.append(part)
            found += len(part)
        self._buffer, self._at = "".join(parts), 0
        return found > 0
