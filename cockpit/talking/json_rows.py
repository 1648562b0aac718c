"""Reads a JSON object of any size whose one list is long: the list's items one after another, the other values whole.

It reads JSON and not its layout: line ends, indentation, the order of keys and a byte order mark do not matter. What is
in memory is one item, or one other value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

import msgspec

MAX_VALUE_BYTES = 256 * 1024 * 1024
"""The longest item, and the longest other value."""
_CHUNK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_TOKEN = re.compile(rb'[ \t\r\n]*+("(?:[^"\\]++|\\.)*+"|[][{}:,]|[^][{}:,"\s]++)', re.DOTALL)
_OPENS, _CLOSES = frozenset(b"[{"), frozenset(b"]}")


class NotJsonError(ValueError):
    """The file is not a JSON object, or ends in the middle."""


class JsonRows:
    """The items of one list of an object in a file.

    Args:
        file: at its start.
        key: of the list, at the object's top.

    Attributes:
        others: the values of the other keys that `wanted` names; complete after the last item.
        found: the object has the list.
    """

    def __init__(self, file: IO[bytes], key: str, wanted: frozenset[str]) -> None:
        self._file, self._key, self._wanted = file, key, wanted
        self.others: dict[str, Any] = {}
        self.found = False
        self._data, self._base, self._at, self._ended = b"", 0, 0, False

    def items(self) -> Iterator[tuple[int, bytes]]:
        """The place and the text of each item.

        Raises:
            NotJsonError: the file is not a JSON object, or ends in the middle.
            msgspec.MsgspecError: a value of `others` is not JSON.
        """
        self._fill()
        if self._data.startswith(_BOM):
            self._at = len(_BOM)
        self._expect(b"{")
        token = self._token()
        while token != b"}":
            key = msgspec.json.decode(token, type=str)
            self._expect(b":")
            if key == self._key and not self.found:
                self.found = True
                self._expect(b"[")
                yield from self._list()
            else:
                _, text = self._value(self._token(), keep=key in self._wanted)
                if key in self._wanted:
                    self.others[key] = msgspec.json.decode(text)
            token = self._after(b"}")
        if self._peek():
            raise NotJsonError(f"byte {self._base + self._at}: text after the end of the object")

    def _list(self) -> Iterator[tuple[int, bytes]]:
        token = self._token()
        while token != b"]":
            yield self._value(token, keep=True)
            token = self._after(b"]")

    def _after(self, end: bytes) -> bytes:
        """The first token of the next member, or the end."""
        if self._at > _CHUNK_BYTES:
            self._release()
        token = self._token()
        if token == b",":
            return self._token()
        if token != end:
            raise self._unexpected(token)
        return token

    def _value(self, first: bytes, *, keep: bool) -> tuple[int, bytes]:
        """The place and the text of the value that begins with a token; without `keep`, its text is empty."""
        start = self._base + self._at - len(first)
        if first[0] not in _OPENS:
            if first in b"]}:,":
                raise self._unexpected(first)
            return start, first
        depth, parts = 1, []
        kept, began = 0, self._at - len(first)
        while depth:
            if self._at > _CHUNK_BYTES:  # what is read is let go, a part at a time
                parts.append(self._data[began : self._at] if keep else b"")
                kept += self._at - began
                if kept > MAX_VALUE_BYTES:
                    raise NotJsonError(f"byte {start}: a value of more than {MAX_VALUE_BYTES} bytes")
                self._release()
                began = 0
            token = self._token()
            if token[0] in _OPENS:
                depth += 1
            elif token[0] in _CLOSES:
                depth -= 1
        parts.append(self._data[began : self._at] if keep else b"")
        return start, b"".join(parts)

    def _expect(self, token: bytes) -> None:
        found = self._token()
        if found != token:
            raise self._unexpected(found)

    def _unexpected(self, token: bytes) -> NotJsonError:
        place = self._base + self._at - len(token)
        return NotJsonError(f"byte {place}: not JSON; got {token[:20].decode('utf-8', 'replace')!r}")

    def _token(self) -> bytes:
        token = self._peek()
        if not token:
            raise NotJsonError("it ends in the middle")
        return token

    def _peek(self) -> bytes:
        """The next token, empty at the end of the file; afterwards it is read."""
        while True:
            found = _TOKEN.match(self._data, self._at)
            # A token at the end of what is read may continue.
            if found is not None and (self._ended or found.end() < len(self._data)):
                self._at = found.end()
                return found[1]
            if self._ended:
                if self._data[self._at :].strip():
                    raise NotJsonError("it ends in the middle")
                return b""
            if len(self._data) - self._at > MAX_VALUE_BYTES:
                raise NotJsonError(f"byte {self._base + self._at}: a text of more than {MAX_VALUE_BYTES} bytes")
            self._fill()

    def _fill(self) -> None:
        more = self._file.read(max(_CHUNK_BYTES, len(self._data)))
        self._ended = not more
        self._data += more

    def _release(self) -> None:
        self._base, self._data, self._at = self._base + self._at, self._data[self._at :], 0
