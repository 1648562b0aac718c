"""Rows with the same content: which row each one repeats, and how many are in two splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.data.preparing.segments import ByPosition, with_first
from engines.data.preparing.sorted_rows import Column, Sorter, Table
from engines.data.preparing.spool import Spool

PRECEDENCE = np.array([2, 1, 0, 3], dtype=np.uint64)
"""Of equal rows in two splits, the one in test is kept before the one in val and in train: what was held out stays
comparable. By the index of the split; the last is for rows without one, which data with splits does not have."""
_SHIFT = np.uint64(30)
ROW = 2**30 - 1
"""The bits of a rank that are the position of its row."""


def rank_of(given: npt.NDArray[np.uint8], first_row: int) -> Column:
    """The order in which rows are kept before others, as numbers of 32 bits: by split, then by position.

    Args:
        given: the split that the data gives, of consecutive rows.
        first_row: the position of the first of them.
    """
    return (PRECEDENCE[given] << _SHIFT) | np.arange(first_row, first_row + len(given), dtype=np.uint64)


def row_of(rank: Column) -> Column:
    """The rows of ranks."""
    return rank & np.uint64(ROW)


def are_of_two_splits(one: Column, other: Column) -> npt.NDArray[np.bool_]:
    """Whether the rows of two ranks are in different splits of the data."""
    return (one >> _SHIFT) != (other >> _SHIFT)


@dataclass(frozen=True)
class Repeats:
    """Rows that repeat another.

    Attributes:
        rows: (row, rank of the row that it repeats), by row.
        across_splits: rows that repeat one that the data gives in another split.
    """

    rows: Table
    across_splits: int = 0

    def repeated(self) -> ByPosition:
        """The rows, to be taken range by range."""
        return ByPosition(self.rows)


@dataclass(frozen=True)
class NearRepeats:
    """Rows that are similar to another.

    Attributes:
        first: (row, rank of the first of its cluster), by row, for all rows that are not the first of their cluster:
            rows that repeat another exactly are in its cluster.
        similar: the rows of it that share most of their words with the first, but do not only repeat it.
        across_splits: similar rows whose first is in another split of the data.
        not_compared: rows that were not compared with all candidates.
    """

    first: Table
    similar: Table
    across_splits: int = 0
    not_compared: int = 0


def exact_repeats(spool: Spool) -> Repeats:
    """The rows whose turns and tools equal those of another row, character for character."""
    contents = Sorter(spool.folder, 3)
    for begin, facts in spool.facts():
        contents.add(facts["content"], facts["order"], rank_of(facts["given"], begin))
    found, across = Sorter(spool.folder, 2), 0
    for rows, first in with_first(contents.stream(), 2):
        repeat = rows[2] != first[2]
        found.add(row_of(rows[2][repeat]), first[2][repeat])
        across += int(np.count_nonzero(are_of_two_splits(rows[2], first[2])))
    return Repeats(found.table(), across)
