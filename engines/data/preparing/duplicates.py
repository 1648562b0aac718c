"""Rows with the same content: which row each one repeats, and how many are in two splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.data.preparing.groups import rows_of_equal
from engines.data.preparing.spool import Spool

Numbers = npt.NDArray[np.int64]
PRECEDENCE = np.array([2, 1, 0, 0], dtype=np.int64)
"""Of equal rows in two splits, the one in test is kept before the one in val and in train: what was held out stays
comparable. By the index of the split; the last is for rows without one."""


@dataclass(frozen=True)
class Repeats:
    """`first[i]` is the row that row i repeats, i itself if it repeats none."""

    first: npt.NDArray[np.int32]
    given: npt.NDArray[np.uint8]

    @property
    def count(self) -> int:
        """Rows that repeat another."""
        return int(np.count_nonzero(self.repeated))

    @property
    def repeated(self) -> npt.NDArray[np.bool_]:
        """Whether each row repeats another."""
        return self.first != np.arange(len(self.first), dtype=np.int32)

    @property
    def across_splits(self) -> int:
        """Rows that repeat one that the data gives in another split."""
        return int(np.count_nonzero(self.given != self.given[self.first]))


def exact_repeats(spool: Spool) -> Repeats:
    """The rows whose turns and tools equal those of another row, character for character."""
    given = np.frombuffer(spool.given, dtype=np.uint8)
    digests = np.frombuffer(spool.contents, dtype=np.uint64).reshape(-1, 2)
    first = np.arange(len(given), dtype=np.int32)
    rows = rows_of_equal(digests[:, 0])  # half of the digest finds the few rows of which all of it is compared
    rows = rows[np.argsort(PRECEDENCE[given[rows]], kind="stable")]
    rows = rows[np.lexsort((digests[rows, 1], digests[rows, 0]))]
    same = np.flatnonzero((digests[rows[1:]] == digests[rows[:-1]]).all(axis=1)) + 1
    new = np.ones(len(rows), dtype=bool)
    new[same] = False
    first[rows] = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    return Repeats(first, given)


def kept_before(given: npt.NDArray[np.uint8]) -> Numbers:
    """All rows in the order in which one is kept before others: by split, then by position."""
    return np.argsort(PRECEDENCE[given], kind="stable")
