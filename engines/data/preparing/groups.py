"""Groups of rows that must be in one split: rows with a common key, directly or through others."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
CHUNK = 65536


def rows_of_equal(keys: npt.NDArray[np.uint64]) -> Numbers:
    """The rows whose key is another row's too, by position."""
    ordered = np.sort(keys)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twice):
        return np.empty(0, dtype=np.int64)
    found = []
    for begin in range(0, len(keys), CHUNK):  # the places of all rows at once would be the largest array of all
        some = keys[begin : begin + CHUNK]
        place = np.searchsorted(twice, some)
        place[place == len(twice)] = 0
        found.append(np.flatnonzero(twice[place] == some) + begin)
    return np.concatenate(found)


class Groups:
    """Rows that are joined with one another (union-find)."""

    def __init__(self, count: int) -> None:
        self._above = array("i", range(count))

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
        rows = rows_of_equal(keys)
        rows = rows[keys[rows] != 0]
        rows = rows[np.argsort(keys[rows], kind="stable")]
        same = np.flatnonzero(keys[rows[1:]] == keys[rows[:-1]])
        for begin in range(0, len(same), CHUNK):
            some = same[begin : begin + CHUNK]
            self.join_all(zip(rows[some].tolist(), rows[some + 1].tolist(), strict=True))

    def head(self, row: int) -> int:
        """The first row of a row's group."""
        above = self._above
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    def heads(self) -> npt.NDArray[np.int32]:
        """The first row of each row's group."""
        above = np.array(self._above, dtype=np.int32)
        while True:  # each pass halves the way to the head
            following = above[above]
            if np.array_equal(following, above):
                return above
            above = following
