"""The texts of a file that has one document per row: JSON Lines, Parquet, Arrow, CSV, JSON arrays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.formats import container_of
from engines.data.readers.lines import FileNote, opened
from engines.data.readers.reading import at_path
from recipes.problems import OperatorError, printable

EXAMPLES = 20
_SHOWN_COLUMNS = 12
_HEAD_BYTES = 4096
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*\{")
_LEAVE_OUT = 'set on_bad_row = "skip" to leave such rows out and count them'
_NO_TEXT = (
    'name the key of the text, columns = {text = "…"}; set on_bad_row = "skip" to leave such rows out, or '
    'format = "raw" if the file is one text'
)


def has_rows(file: Path) -> bool:
    """Whether a file has one document per row: a table by its name, and of JSON only a list of objects."""
    container = container_of(file)
    return container is not None and (container.name != "JSON" or _is_list_of_objects(file))


def _is_list_of_objects(file: Path) -> bool:
    try:
        with opened(file) as content:
            return _LIST.match(content.read(_HEAD_BYTES)) is not None
    except OperatorError:
        return False


class RowTexts:
    """Reads the texts of files of rows, and counts the rows that it skips.

    Attributes:
        skipped: rows without a text, by reason; only `on_bad_row = "skip"` skips them. Rows whose text is empty are
            always skipped.
        examples: the first of them, each with its place and what is wrong.
    """

    def __init__(self, column: str, encoding: str | None, *, skip: bool) -> None:
        """`column` is the key of the text, dotted for one inside another object; `encoding` is that of text files."""
        self._column = column
        self._name = f"{printable(column, 60)!r}"
        self._encoding = encoding
        self._skip = skip
        self.skipped: Counter[str] = Counter()
        self.examples: list[str] = []

    def read(self, file: Path) -> Iterator[tuple[str, str]]:
        """The texts of a file, each with what its place has after the file's path, such as `:17`.

        Raises:
            OperatorError: a row has no text; the message begins with its place.
        """
        container = container_of(file)
        assert container is not None
        for where, value in container.values(file, self._encoding, FileNote(container.name)):
            try:
                text = self._text(value)
            except BadRowError as error:
                self._refuse(where, error, value)
                continue
            if text.strip():
                yield where.removeprefix(str(file)), text
            else:
                self._count("empty", where, "the text is empty")

    def _text(self, row: Any) -> str:
        """The text of a row.

        Raises:
            BadRowError: it has none.
        """
        if isinstance(row, BadRowError):
            raise row
        value = at_path(row, self._column) if isinstance(row, Mapping) else None
        if not isinstance(value, str):
            found = "is null or missing" if value is None else f"is {type(value).__name__}, not a text"
            raise BadRowError(f"{self._name} {found}", hint=_NO_TEXT)
        if "\0" in value:
            raise BadRowError(f"{self._name} has a NUL character", hint=_NO_TEXT)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRowError(
                f"{self._name} has half a surrogate pair, which is no character", hint=_NO_TEXT
            ) from error
        return value

    def _refuse(self, where: str, error: BadRowError, row: Any) -> None:
        if self._skip:
            self._count("bad_row", where, error.what)
            return
        keys = [printable(str(key), 40) for key in list(row)[:_SHOWN_COLUMNS]] if isinstance(row, Mapping) else []
        found = f"; the row has {', '.join(keys)}" if keys else ""
        raise OperatorError(f"{where}: not a document: {error.what}{found}", error.hint or _LEAVE_OUT)

    def _count(self, reason: str, where: str, problem: str) -> None:
        self.skipped[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {problem}")
