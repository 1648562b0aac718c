"""Groups of rows that must be in one split: rows with a common key, directly or through others."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


class Groups:
    """Rows that are joined with one another (union-find)."""

    def __init__(self, count: int) -> None:
        self._above = array("q", range(count))

    def join(self, one: int, other: int) -> None:
        """Put two rows, and all that are joined with them, into one group."""
        one, other = self.head(one), self.head(other)
        if one != other:
            self._above[max(one, other)] = min(one, other)

    def join_all(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Join every pair."""
        for one, other in pairs:
            self.join(one, other)

    def join_equal(self, keys: npt.NDArray[np.uint64]) -> None:
        """Join the rows with equal keys; a key of 0 joins nothing."""
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
        self.join_all(zip(order[same].tolist(), order[same + 1].tolist(), strict=True))

    def head(self, row: int) -> int:
        """The first row of a row's group."""
        above = self._above
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    def heads(self) -> Numbers:
        """The first row of each row's group."""
        return np.fromiter((self.head(row) for row in range(len(self._above))), np.int64, len(self._above))
