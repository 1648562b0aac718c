"""Rows of numbers in sorted order, however many: sorted runs on disk, merged in a stream.

A row has one or more columns of unsigned 64-bit numbers and is compared column by column. Files have no name, so the
kernel removes them with the process, even after SIGKILL.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.uint64]
Columns = npt.NDArray[np.uint64]
"""Rows by column: [columns, rows]."""
RUN_ROWS = 65536
"""Rows of a run, and of a chunk that is read."""
FAN_IN = 32
"""Runs that are merged at once."""
MERGE_ROWS = 131072
"""Rows in memory while runs are merged, of all runs together."""
BLOCK_ROWS = 1024
"""Fewest rows of a run that are read at once."""
_BYTES = 8


class ScratchFile:
    """A file without a name, which only this process can read: the kernel removes it with the last user."""

    def __init__(self, folder: Path) -> None:
        """Create the file.

        Raises:
            OSError: the folder cannot be written.
        """
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            self._fd = os.dup(file.fileno())
        self.bytes = 0
        self.close = weakref.finalize(self, os.close, self._fd)

    def append(self, numbers: npt.NDArray[Any]) -> None:
        """Write numbers at the end.

        Raises:
            OSError: the disk is full.
        """
        self.write(numbers, self.bytes)

    def write(self, numbers: npt.NDArray[Any], place: int) -> None:
        """Write numbers from a byte on, which may be behind the end.

        Raises:
            OSError: the disk is full.
        """
        view: memoryview[Any] = memoryview(np.ascontiguousarray(numbers).view(np.uint8).data).cast("B")
        while view:
            done = os.pwrite(self._fd, view, place)
            view, place = view[done:], place + done
        self.bytes = max(self.bytes, place)

    def read(self, into: npt.NDArray[Any], place: int) -> None:
        """Fill an array with the bytes from a place on; what is behind the end is not changed.

        Raises:
            OSError: the file cannot be read.
        """
        view: memoryview[Any] = memoryview(into.view(np.uint8).data).cast("B")
        while view and (got := os.preadv(self._fd, [view], place)):
            view, place = view[got:], place + got

    def text(self, begin: int, end: int) -> bytes:
        """The bytes from `begin` to `end`.

        Raises:
            OSError: the file cannot be read.
        """
        found = os.pread(self._fd, end - begin, begin)
        while len(found) < end - begin and (more := os.pread(self._fd, end - begin - len(found), begin + len(found))):
            found += more
        return found


@dataclass(frozen=True)
class _Run:
    """A sorted run of rows in a file, one row behind another: its first byte, and its number of rows."""

    file: ScratchFile
    begin: int
    rows: int

    def read(self, begin: int, end: int, columns: int) -> Columns:
        """The rows from `begin` to `end`, [columns, rows]."""
        found = np.empty((end - begin, columns), dtype=np.uint64)
        self.file.read(found, self.begin + begin * columns * _BYTES)
        return np.ascontiguousarray(found.T)


class Table:
    """Sorted rows, which can be read any number of times."""

    def __init__(self, columns: int, rows: Columns | None = None, run: _Run | None = None) -> None:
        self._columns = columns
        self._rows = rows
        self._run = run

    def __len__(self) -> int:
        if self._run is not None:
            return self._run.rows
        return 0 if self._rows is None else self._rows.shape[1]

    def __iter__(self) -> Iterator[Columns]:
        """The rows in chunks."""
        for begin in range(0, len(self), RUN_ROWS):
            yield self.rows(begin, min(begin + RUN_ROWS, len(self)))

    def rows(self, begin: int, end: int) -> Columns:
        """The rows from `begin` to `end`."""
        if self._run is not None:
            return self._run.read(begin, end, self._columns)
        assert self._rows is not None, "a table without a run has rows"
        return self._rows[:, begin:end]


class Sorter:
    """Takes rows in any order and gives them sorted.

    Args:
        folder: where the runs are kept.
        columns: numbers of a row.
        unique: whether equal rows are given once.
    """

    def __init__(self, folder: Path, columns: int, *, unique: bool = False) -> None:
        self._folder = folder
        self._columns = columns
        self._unique = unique
        self._parts: list[Columns] = []
        self._waiting = 0
        self._levels: list[list[_Run]] = []

    def add(self, *columns: npt.NDArray[np.generic]) -> None:
        """Add rows, by column."""
        rows = np.stack([column.astype(np.uint64, copy=False) for column in columns])
        for begin in range(0, rows.shape[1], RUN_ROWS):
            self._parts.append(rows[:, begin : begin + RUN_ROWS])
            self._waiting += self._parts[-1].shape[1]
            if self._waiting >= RUN_ROWS:
                self._append(0, iter([self._ordered(self._parts)]))
                self._parts, self._waiting = [], 0

    def stream(self) -> Iterator[Columns]:
        """All rows in order, in chunks; once."""
        rest = [self._ordered(self._parts)] if self._waiting else []
        self._parts, self._waiting = [], 0
        runs = [run for level in self._levels for run in level]
        self._levels = []
        if not runs:
            yield from rest
            return
        yield from self._merged(runs, rest)

    def table(self) -> Table:
        """All rows in order, to be read several times."""
        if not self._levels:
            chunks = list(self.stream())
            return Table(self._columns, chunks[0] if chunks else None)
        return Table(self._columns, run=self._written(ScratchFile(self._folder), self.stream()))

    def _append(self, level: int, chunks: Iterator[Columns]) -> None:
        """Write a run, and merge the runs of its level once there are `FAN_IN` of them."""
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        file = runs[0].file if runs else ScratchFile(self._folder)
        runs.append(self._written(file, chunks))
        if len(runs) == FAN_IN:
            self._levels[level] = []
            self._append(level + 1, self._merged(runs, []))

    def _written(self, file: ScratchFile, chunks: Iterator[Columns]) -> _Run:
        """Write sorted rows at the end of a file."""
        begin, rows = file.bytes, 0
        for chunk in chunks:
            file.append(chunk.T)
            rows += chunk.shape[1]
        return _Run(file, begin, rows)

    def _merged(self, runs: list[_Run], rest: list[Columns]) -> Iterator[Columns]:
        """The rows of all runs in order: of each run a block is in memory, and what no block can precede is given."""
        block_rows = max(MERGE_ROWS // (len(runs) + len(rest)), BLOCK_ROWS)
        blocks: list[Columns] = [run.read(0, min(block_rows, run.rows), self._columns) for run in runs] + rest
        read = [block.shape[1] for block in blocks]
        ends = [run.rows for run in runs] + read[len(runs) :]
        while blocks:
            limits = [tuple(b[:, -1].tolist()) for b, at, end in zip(blocks, read, ends, strict=True) if at < end]
            parts, last = [], min(limits) if limits else None
            for number, block in enumerate(blocks):
                cut = block.shape[1] if last is None else _place_after(block, last)
                parts.append(block[:, :cut])
                blocks[number] = block[:, cut:]
                if cut == block.shape[1] and read[number] < ends[number]:
                    begin, read[number] = read[number], min(read[number] + block_rows, ends[number])
                    blocks[number] = runs[number].read(begin, read[number], self._columns)
            yield self._ordered(parts)
            if last is None:
                return

    def _ordered(self, parts: list[Columns]) -> Columns:
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        rows = np.sort(rows) if self._columns == 1 else rows[:, np.lexsort(rows[::-1])]
        if self._unique and rows.shape[1]:
            new = np.ones(rows.shape[1], dtype=bool)
            new[1:] = (rows[:, 1:] != rows[:, :-1]).any(axis=0)
            rows = rows[:, new]
        return rows


def _place_after(block: Columns, last: tuple[int, ...]) -> int:
    """The number of rows of a sorted block that are not after `last`."""
    low, high = 0, block.shape[1]
    for column, number in zip(block[:-1], last[:-1], strict=True):
        some, key = column[low:high], np.uint64(number)
        low, high = low + int(np.searchsorted(some, key)), low + int(np.searchsorted(some, key, side="right"))
    return low + int(np.searchsorted(block[-1][low:high], np.uint64(last[-1]), side="right"))
