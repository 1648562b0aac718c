"""One pass over TOML text before it is parsed: finds the position of every key and value, and enforces size limits.

The scanner does not recurse and runs in linear time, and its limits keep parsing cheap. It does not validate TOML
(`tomllib` does). It finds keys, values and tables, so that problems name their line and edits replace exactly one
value. It reports the position of text that it cannot follow; the parser then reads only the text before that point.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]

MAX_KEY_PARTS = 8
MAX_DEPTH = 12
MAX_BARE_CHARACTERS = 80
MAX_ITEMS = 1_000
MAX_KEYS = 10_000

_SPACE = re.compile(r"[ \t]*+")
_BLANK = re.compile(r"(?:[ \t\r\n]++|#[^\n]*+)*+")
_LINE_END = re.compile(r"[ \t]*+(?:#[^\r\n]*+)?(?=\r?\n|\Z)")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]++|"(?:[^"\\\r\n]|\\[^\r\n])*+"|'[^'\r\n]*+'""")
_LINE_STRING = re.compile(r"""(?:"(?:[^"\\\r\n]|\\[^\r\n])*+"|'[^'\r\n]*+')""")
_BASIC_END = re.compile(r'\\.|"{3,5}', re.DOTALL)
_LITERAL_END = re.compile(r"'{3,5}")
_BARE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d[^\s,\]\}#]*+|[^\s,\[\]\{\}#\"'=]++")


class ScanError(Exception):
    """The scanner stopped at `position`; `hostile` if a limit is exceeded there, otherwise the text is not TOML."""

    def __init__(self, position: int, message: str, hostile: bool) -> None:
        super().__init__(message)
        self.position = position
        self.message = message
        self.hostile = hostile


@dataclass(frozen=True)
class Span:
    """Offsets into the text, end exclusive."""

    start: int
    end: int


@dataclass
class TomlIndex:
    """Positions in the text, by path. A path has an index for each array: `("stage", 1, "retry", "max_attempts")`."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    """line (from 1) of every key, table and array element"""
    keys: dict[KeyPath, int] = field(default_factory=dict)
    """offset of the key of every `key = value`"""
    values: dict[KeyPath, Span] = field(default_factory=dict)
    """the value of every `key = value` and of every array element"""
    headers: dict[KeyPath, int] = field(default_factory=dict)
    """for every table with a header: the offset of its first bracket"""
    bodies: dict[KeyPath, int] = field(default_factory=dict)
    """for the root and every table with a header: the offset after its last statement, where a new one is inserted"""


@dataclass
class _Open:
    """A bracket that is not closed yet."""

    close: str
    path: KeyPath
    start: int
    count: int = 0


def scan(text: str) -> TomlIndex:
    """Index TOML text.

    Raises:
        ScanError: a limit is exceeded, or the text is not TOML.
    """
    return _Scanner(text).run()


class Positions:
    """Line and column (both from 1) of offsets."""

    def __init__(self, text: str) -> None:
        self._starts = [0] + [match.end() for match in re.finditer("\n", text)]

    def line(self, offset: int) -> int:
        return bisect_right(self._starts, offset)

    def column(self, offset: int) -> int:
        return offset - self._starts[self.line(offset) - 1] + 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.positions = Positions(text)
        self.index = TomlIndex(bodies={(): 0})
        self.table: KeyPath = ()
        self.arrays: dict[KeyPath, int] = {}

    def run(self) -> TomlIndex:
        text, pos = self.text, 0
        while (pos := self._skip(_BLANK, pos)) < len(text):
            pos = self._header(pos) if text[pos] == "[" else self._statement(pos)
            end = _LINE_END.match(text, pos)
            if end is None:
                raise self._not_toml(pos, "expected the end of the line")
            self.index.bodies[self.table] = pos = end.end()
            if len(self.index.lines) > MAX_KEYS:
                raise ScanError(pos, f"more than {MAX_KEYS} keys and values", True)
        return self.index

    def _header(self, pos: int) -> int:
        """Read `[table]` or `[[array of tables]]`, which the next statements belong to; returns the offset after it."""
        start, line = pos, self.positions.line(pos)
        many = self.text.startswith("[[", pos)
        parts, pos = self._key(self._skip(_SPACE, pos + 1 + many))
        close = "]]" if many else "]"
        if not self.text.startswith(close, pos):
            raise self._not_toml(pos, f"expected {close}")
        path = (*self._resolve(parts[:-1]), parts[-1])
        self.index.lines.setdefault(path, line)
        if many:
            number = self.arrays.get(path, 0)
            self.arrays[path] = number + 1
            path += (number,)
        elif path in self.arrays:
            path += (self.arrays[path] - 1,)
        for length in range(1, len(path) + 1):
            self.index.lines.setdefault(path[:length], line)
        self.table = path
        self.index.headers.setdefault(path, start)
        return pos + len(close)

    def _resolve(self, parts: tuple[str, ...]) -> KeyPath:
        """The path of a header; the name of an array of tables refers to its last table."""
        path: KeyPath = ()
        for part in parts:
            path += (part,)
            if path in self.arrays:
                path += (self.arrays[path] - 1,)
        return path

    def _statement(self, pos: int) -> int:
        path, start = self._key_and_sign(self.table, pos)
        return self._value(start, path)

    def _key_and_sign(self, table: KeyPath, pos: int) -> tuple[KeyPath, int]:
        """Read `key =`; returns the path of the key and the offset of the value."""
        parts, end = self._key(pos)
        if self.text[end : end + 1] != "=":
            raise self._not_toml(end, "expected = after the key")
        path = table + parts
        line = self.positions.line(pos)
        for length in range(len(table) + 1, len(path) + 1):
            self.index.lines.setdefault(path[:length], line)
        self.index.keys.setdefault(path, pos)
        return path, self._skip(_SPACE, end + 1)

    def _key(self, pos: int) -> tuple[tuple[str, ...], int]:
        """Read a key, dotted or not; returns its parts and the offset after it and its spaces."""
        parts: list[str] = []
        while True:
            match = _KEY_PART.match(self.text, pos)
            if match is None:
                raise self._not_toml(pos, "expected a key")
            parts.append(self._unquoted(match.group(), pos))
            if len(parts) > MAX_KEY_PARTS:
                raise ScanError(pos, f"a key with more than {MAX_KEY_PARTS} parts", True)
            pos = self._skip(_SPACE, match.end())
            if self.text[pos : pos + 1] != ".":
                return tuple(parts), pos
            pos = self._skip(_SPACE, pos + 1)

    def _unquoted(self, token: str, pos: int) -> str:
        if token[0] not in "\"'":
            return token
        if "\\" not in token or token[0] == "'":
            return token[1:-1]
        try:
            return str(tomllib.loads(f"key = {token}")["key"])
        except tomllib.TOMLDecodeError:
            raise self._not_toml(pos, "unknown escape sequence in this key") from None

    def _value(self, pos: int, path: KeyPath) -> int:
        """Index the value at `pos` and everything inside it; returns the offset after it."""
        stack: list[_Open] = []
        while True:
            self.index.lines.setdefault(path, self.positions.line(pos))
            opening = self.text[pos : pos + 1]
            fresh = opening in ("[", "{")
            if fresh:
                stack.append(_Open("]" if opening == "[" else "}", path, pos))
                if len(stack) > MAX_DEPTH:
                    raise ScanError(pos, f"values nested more than {MAX_DEPTH} levels deep", True)
                pos += 1
            else:
                end = self._scalar(pos)
                self.index.values.setdefault(path, Span(pos, end))
                pos = end
            pos = self._close(stack, pos, fresh)
            if not stack:
                return pos
            path, pos = self._item(stack[-1], pos)

    def _close(self, stack: list[_Open], pos: int, fresh: bool) -> int:
        """Skip commas and closing brackets up to the next item; the stack is empty after the last bracket."""
        while stack:
            top = stack[-1]
            pos = self._skip(_BLANK, pos)
            if not fresh and self.text[pos : pos + 1] == ",":
                pos, fresh = self._skip(_BLANK, pos + 1), True
            elif not fresh and self.text[pos : pos + 1] != top.close:
                raise self._not_toml(pos, f"expected a comma or {top.close}")
            if self.text[pos : pos + 1] != top.close:
                return pos
            pos += 1
            self.index.values.setdefault(top.path, Span(top.start, pos))
            stack.pop()
            fresh = False
        return pos

    def _item(self, top: _Open, pos: int) -> tuple[KeyPath, int]:
        if top.close == "}":
            return self._key_and_sign(top.path, pos)
        top.count += 1
        if top.count > MAX_ITEMS:
            raise ScanError(pos, f"a list with more than {MAX_ITEMS} items", True)
        return (*top.path, top.count - 1), pos

    def _scalar(self, pos: int) -> int:
        """The offset after a string, number, date or word."""
        text = self.text
        if text.startswith(('"""', "'''"), pos):
            pattern, at = (_BASIC_END if text[pos] == '"' else _LITERAL_END), pos + 3
            while match := pattern.search(text, at):
                if text[match.start()] != "\\":
                    return match.end()
                at = match.end()
            raise self._not_toml(pos, "unterminated string")
        if text[pos : pos + 1] in ('"', "'"):
            string = _LINE_STRING.match(text, pos)
            if string is None:
                raise self._not_toml(pos, "unterminated string")
            return string.end()
        bare = _BARE.match(text, pos)
        if bare is None:
            raise self._not_toml(pos, "expected a value")
        if bare.end() - pos > MAX_BARE_CHARACTERS:
            raise ScanError(pos, f"a number or bare word of more than {MAX_BARE_CHARACTERS} characters", True)
        return bare.end()

    def _skip(self, pattern: re.Pattern[str], pos: int) -> int:
        match = pattern.match(self.text, pos)
        return match.end() if match else pos

    def _not_toml(self, pos: int, message: str) -> ScanError:
        return ScanError(pos, message, False)
