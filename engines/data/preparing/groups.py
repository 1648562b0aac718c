"""Groups of rows that must be in one split: rows with a common key, directly or through others.

Pairs of rows are edges of a graph, and groups are its connected components. They are found by sorting edges, so memory
does not depend on their number: large-star and small-star operations in turn, after Kiveris et al., "Connected
Components in MapReduce and Beyond" (2014), in O(log² rows) rounds; most data needs two or three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from engines.data.preparing.segments import with_first
from engines.data.preparing.sorted_rows import Columns, Sorter, Table

MAX_ROWS = 2**30
"""Most rows of one preparation: an edge is one number of 64 bits, and near duplicates need two bits of a row's 32."""
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Edges:
    """Pairs of rows that are in one group."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._sorter = Sorter(scratch, 1, unique=True)

    def join(self, one: Columns, other: Columns) -> None:
        """Put pairs of rows into one group each; a row and itself is no pair."""
        differ = one != other
        self._sorter.add((one[differ] << _SHIFT) | other[differ])

    def join_equal(self, chunks: Iterable[Columns]) -> None:
        """Join the rows of sorted chunks (key, row) that have the same key."""
        for rows, first in with_first(chunks, 1):
            self.join(rows[1], first[1])

    def heads(self) -> Table:
        """The first row of each row's group, as (row, first), for the rows that are not first themselves; by row."""
        edges = self._sorter
        while True:
            larger, changed = self._large_star(edges.stream())
            edges, more = self._small_star(larger.stream())
            if not changed and not more:
                break
        found = Sorter(self._scratch, 2)
        for (packed,) in edges.stream():
            found.add(packed >> _SHIFT, packed & _LOW)
        return found.table()

    def _large_star(self, edges: Iterator[Columns]) -> tuple[Sorter, bool]:
        """Join the larger neighbours of each row with its smallest neighbour; and whether that changed an edge."""
        both = Sorter(self._scratch, 1, unique=True)
        for (packed,) in edges:
            both.add(packed)
            both.add((packed << _SHIFT) | (packed >> _SHIFT))
        found, changed = Sorter(self._scratch, 1, unique=True), False
        for row, other, least in _neighbours(both.stream()):
            larger = other > row
            changed = changed or bool((least[larger] != row[larger]).any())
            found.add((other[larger] << _SHIFT) | least[larger])
        return found, changed

    def _small_star(self, edges: Iterator[Columns]) -> tuple[Sorter, bool]:
        """Join each row and its smaller neighbours with the smallest one; and whether a row had several.

        The edges are (row, smaller row).
        """
        found, several = Sorter(self._scratch, 1, unique=True), False
        for row, other, least in _neighbours(edges):
            rest = other > least
            several = several or bool(rest.any())
            found.add((row << _SHIFT) | least)
            found.add((other[rest] << _SHIFT) | least[rest])
        return found, several


def _neighbours(edges: Iterator[Columns]) -> Iterator[tuple[Columns, Columns, Columns]]:
    """Rows, a neighbour of each, and the smallest of the row and all of its neighbours."""
    unpacked = (np.stack([packed >> _SHIFT, packed & _LOW]) for (packed,) in edges)
    for (row, other), (_, first) in with_first(unpacked, 1):
        yield row, other, np.minimum(row, first)
