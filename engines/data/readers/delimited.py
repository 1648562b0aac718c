"""CSV and TSV: a header with names, then one row per record. Every value is text; an empty cell is no value."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.lines import MAX_ROW_BYTES, FileNote, TextLines, opened
from recipes.problems import OperatorError, printable

_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|:])"?\r?\n?', re.IGNORECASE)
"""A first line that Excel writes and reads: it names the separator, and is neither header nor row."""


def delimited_values(file: Path, encoding: str | None, note: FileNote) -> Iterator[tuple[str, Any]]:
    """The records of a file, each as an object by the names of the header, with the line on which it ends.

    A `BadRowError` is in place of a record that has more or fewer cells than the header.

    Raises:
        OperatorError: the file has no header of distinct names, or is not CSV or not in the encoding.
    """
    with opened(file) as content:
        lines = _Lines(file, TextLines(content, encoding, note))
        first = next(lines, "")
        named = _SEPARATOR_LINE.fullmatch(first)
        if named:
            first = next(lines, "")
        separator = named[1] if named else _separator(file, first)
        note.container = {",": "CSV", "\t": "TSV"}.get(separator, f"CSV with {separator!r} between cells")
        csv.field_size_limit(MAX_ROW_BYTES)
        header = _header(file, next(csv.reader([first], delimiter=separator), []))
        records = csv.reader(lines, delimiter=separator, strict=True)
        while True:
            try:
                record = next(records, None)
            except csv.Error as error:
                where = f"{file}:{lines.number}"
                hint = "a cell with quotes, separators or line ends stands in quotes, with its quotes doubled"
                raise OperatorError(f"{where}: not CSV: {printable(str(error), 200)}", hint) from error
            if record is None:
                return
            if not record:
                continue
            where = f"{file}:{lines.number}"
            if len(record) != len(header):
                what = f"{len(record)} cells; the header has {len(header)}"
                yield where, BadRowError(what, "other cells than the header has")
                continue
            yield where, {name: cell or None for name, cell in zip(header, record, strict=True)}


class _Lines:
    """Lines for `csv`, with the number of the last one.

    Raises:
        OperatorError: a line is not in the encoding or is too long; where the next record begins is then unknown.
    """

    def __init__(self, file: Path, lines: TextLines) -> None:
        self.number = 0
        self._file = file
        self._lines = iter(lines)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        if isinstance(line, BadRowError):
            raise OperatorError(f"{self._file}:{self.number}: {line.what}", line.hint)
        return line


def _separator(file: Path, header: str) -> str:
    if ".tsv" in file.suffixes:
        return "\t"
    counts = {mark: header.count(mark) for mark in (",", ";", "\t")}
    return max(counts, key=lambda mark: counts[mark]) if any(counts.values()) else ","


def _header(file: Path, names: list[str]) -> list[str]:
    names = [name.strip() for name in names]
    if any(names):
        names = [name or f"Unnamed: {number}" for number, name in enumerate(names)]  # as pandas, which writes such
    else:
        raise OperatorError(f"{file}:1: the file has no header", "the first line names the columns")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        what = f"the column {printable(twice[0], 80)!r} is there twice"
        raise OperatorError(f"{file}:1: {what}", "give each column a name of its own")
    return names
