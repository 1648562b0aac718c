"""Runs of equal keys in sorted chunks, also where a run does not end with its chunk; and sorted chunks by position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from engines.data.preparing.sorted_rows import Column, Columns


def with_first(chunks: Iterable[Columns], keys: int) -> Iterator[tuple[Columns, Columns]]:
    """Sorted rows, each with the first row of those that have the same key.

    Args:
        chunks: sorted rows.
        keys: the number of columns, from the first on, that are the key.

    Returns:
        Chunks of rows, and of the first rows: [columns, rows] both.
    """
    last: Columns | None = None
    for rows in chunks:
        if not rows.shape[1]:
            continue
        behind = rows if last is None else np.concatenate([last, rows], axis=1)
        new = np.ones(behind.shape[1], dtype=bool)
        new[1:] = (behind[:keys, 1:] != behind[:keys, :-1]).any(axis=0)
        place = np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
        first = behind[:, place]
        last = first[:, -1:]
        yield rows, first if behind is rows else first[:, 1:]


def totals(chunks: Iterable[Columns]) -> Iterator[tuple[Column, Column, Column]]:
    """Of sorted rows (key, number) each key once, with its number of rows and the sum of its numbers modulo 2**64."""
    held: Columns | None = None  # the last key's (key, rows, sum), which may have more rows in the next chunk
    for rows in chunks:
        if not rows.shape[1]:
            continue
        begins = np.flatnonzero(np.concatenate([[True], rows[0, 1:] != rows[0, :-1]]))
        counts = np.diff(begins, append=rows.shape[1]).astype(np.uint64)
        found = np.stack([rows[0, begins], counts, np.add.reduceat(rows[1], begins)])
        if held is not None and held[0, 0] == found[0, 0]:
            found[1:, 0] += held[1:, 0]
        elif held is not None:
            found = np.concatenate([held, found], axis=1)
        held = found[:, -1:].copy()
        yield found[0, :-1], found[1, :-1], found[2, :-1]
    if held is not None:
        yield held[0], held[1], held[2]


class ByPosition:
    """Sorted rows (position, …) that are taken range by range, in ascending order."""

    def __init__(self, chunks: Iterable[Columns]) -> None:
        self._chunks = iter(chunks)
        self._rows: Columns | None = None

    def take(self, begin: int, end: int) -> Columns:
        """The rows whose position is in a range; `begin` is the end of the range before.

        The positions that are given are relative to `begin`.
        """
        parts: list[Columns] = []
        while True:
            if self._rows is None or not self._rows.shape[1]:
                self._rows = next(self._chunks, None)
            if self._rows is None:
                break
            cut = int(np.searchsorted(self._rows[0], np.uint64(end)))
            parts.append(self._rows[:, :cut])
            self._rows = self._rows[:, cut:]
            if self._rows.shape[1]:
                break
        rows = np.concatenate(parts, axis=1) if parts else np.empty((2, 0), dtype=np.uint64)
        rows[0] -= np.uint64(begin)
        return rows

    def values(self, begin: int, end: int, default: npt.NDArray[np.uint64]) -> Column:
        """A number for every position of a range: the second column, or that of `default`."""
        found = default.copy()
        rows = self.take(begin, end)
        found[rows[0].astype(np.int64)] = rows[1]
        return found

    def mask(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """Which positions of a range there are."""
        found = np.zeros(end - begin, dtype=bool)
        found[self.take(begin, end)[0].astype(np.int64)] = True
        return found


def joined(pairs: Iterable[Columns], values: Iterable[Columns]) -> Iterator[tuple[Column, Column]]:
    """Chunks of (value, other) for every pair (key, other) whose key has a value (key, value); both sorted by key.

    A pair whose key has no value is left out.
    """
    known = iter(values)
    rows = next(known, None)
    for pair in pairs:
        left = pair
        while left.shape[1] and rows is not None:
            if not rows.shape[1]:
                rows = next(known, None)
                continue
            cut = int(np.searchsorted(left[0], rows[0, -1], side="right"))
            place = np.searchsorted(rows[0], left[0, :cut])
            fits = rows[0][place] == left[0, :cut]
            yield rows[1][place[fits]], left[1, :cut][fits]
            left = left[:, cut:]
            if left.shape[1]:
                rows = next(known, None)
