"""Divide groups of rows into splits of exact sizes: no group is in two splits.

Groups of one row give the exact counts. For larger groups the nearest possible counts are found: groups are taken in
the order of a keyed hash, and a sum of group sizes (subset sum, as a set of bits) fills what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from math import floor

import numpy as np
import numpy.typing as npt

from engines.data.split import SPLITS
from recipes.problems import OperatorError

Numbers = npt.NDArray[np.int64]
CHUNK = 65536
TRIED_GROUPS = 12
HELD_OUT = ("test", "val")
"""In the order in which their groups are chosen: test takes the lowest hashes, as in a division of documents."""
MAX_SUM_BYTES = 64 * 1024 * 1024
"""Most memory for the sets of sums of one search."""


@dataclass(frozen=True)
class SplitWish:
    """The sizes that a recipe requests: a count of rows, or a share of all rows where the count is None."""

    val_fraction: float = 0.0
    test_fraction: float = 0.0
    val_rows: int | None = None
    test_rows: int | None = None

    @property
    def requested(self) -> list[str]:
        """The splits that shall have rows."""
        val = self.val_fraction if self.val_rows is None else self.val_rows
        test = self.test_fraction if self.test_rows is None else self.test_rows
        return [split for split, size in zip(SPLITS, (1, val, test), strict=True) if size]


def wanted_rows(total: int, wish: SplitWish) -> dict[str, int]:
    """The number of rows of each split: train and val rounded down, test gets the rest.

    A split with a count has exactly that many rows. Without a test split the rest belongs to train. A requested split
    has at least one row.

    Raises:
        OperatorError: there are fewer rows than the splits need.
    """
    val, test = Decimal(repr(wish.val_fraction)), Decimal(repr(wish.test_fraction))
    counted = wish.val_rows is not None or wish.test_rows is not None
    wanted = {"val": floor(total * val) if wish.val_rows is None else wish.val_rows}
    if wish.test_rows is not None:
        wanted["test"] = wish.test_rows
    elif counted or not test:
        wanted["test"] = floor(total * test)
    else:
        wanted["test"] = total - floor(total * (1 - val - test)) - wanted["val"]
    wanted["train"] = total - wanted["val"] - wanted["test"]
    requested = wish.requested
    if total < len(requested) or (counted and wanted["train"] < 1):
        held_out = ", ".join(f"{wanted[split]} for {split}" for split in HELD_OUT if split in requested)
        raise OperatorError(
            f"{_field_of(wish)} — cannot divide {total} row(s) into {', '.join(requested)}"
            + (f" with {held_out}" if counted else ""),
            "lower val_rows and test_rows, set val_fraction = 0 and test_fraction = 0, or give more data",
        )
    for split in (split for split in requested if not wanted[split]):
        giver = "train" if wanted["train"] > 1 else max(wanted, key=lambda other: wanted[other])
        wanted[giver] -= 1
        wanted[split] = 1
    return {split: wanted[split] for split in SPLITS}


def _field_of(wish: SplitWish) -> str:
    """The field of the recipe that requests the most of the held-out rows."""
    given = {name: getattr(wish, name) for name in ("val_rows", "test_rows")}
    counts = {name: rows for name, rows in given.items() if rows}
    if counts:
        return max(counts, key=lambda name: counts[name])
    return "val_fraction" if wish.val_fraction else "test_fraction"


def divide(sizes: Numbers, order: npt.NDArray[np.uint64], wanted: dict[str, int]) -> npt.NDArray[np.uint8]:
    """The split of each group.

    Args:
        sizes: rows of each group.
        order: a number of each group, equally distributed and independent of its size: the order of choice.
        wanted: rows of each split; they add up to the sum of the sizes.

    Returns:
        The index of each group's split. Test is the nearest possible to its wanted size, then val among the groups that
        are left; no requested split is empty.

    Raises:
        OperatorError: there are fewer groups than requested splits.
    """
    requested = [split for split in SPLITS if wanted[split]]
    if len(sizes) < len(requested):
        raise OperatorError(
            f"group_by — cannot divide {len(sizes)} group(s) of rows into {', '.join(requested)}: rows of one group"
            " stay together",
            "set group_by to fewer keys, set val_fraction = 0 and test_fraction = 0, or give more data",
        )
    split_of = np.zeros(len(sizes), dtype=np.uint8)
    left = np.argsort(order, kind="stable")
    needed = len(requested)
    for split in HELD_OUT:
        if not wanted[split]:
            continue
        needed -= 1
        split_of[_nearest(left, sizes, wanted[split], len(left) - needed)] = SPLITS.index(split)
        left = left[split_of[left] == 0]
    return split_of


def _nearest(groups: Numbers, sizes: Numbers, wanted: int, most: int) -> list[int]:
    """Between 1 and `most` groups whose sizes add up as nearly as possible to `wanted`, mostly the first in order."""
    best = first = _first_that_fit(groups, sizes, wanted)
    distance = wanted - int(sizes[first].sum())
    back = 1
    while distance and back < 2 * len(first) + 2:
        filled = _sum_near(groups, sizes, wanted, first[: max(len(first) - back, 0)])
        farther = abs(wanted - int(sizes[filled].sum()))
        if farther < distance or not best:
            best, distance = filled, farther
        back *= 2
    return best if 1 <= len(best) <= most else _few(groups, sizes, wanted, most)


def _few(groups: Numbers, sizes: Numbers, wanted: int, most: int) -> list[int]:
    """At most `most` groups near `wanted`, where more would be nearer but leave none for another split.

    Of few groups all choices are tried; of many, the smallest are left out.
    """
    if len(groups) <= TRIED_GROUPS:
        counts = range(1, most + 1)
        choices = (some for count in counts for some in combinations(groups.tolist(), count))
        return list(min(choices, key=lambda some: abs(wanted - int(sizes[list(some)].sum()))))
    fitting = groups[sizes[groups] <= wanted]
    if not len(fitting):
        return [int(groups[np.argmin(sizes[groups])])]
    return _first_that_fit(fitting[np.argsort(-sizes[fitting], kind="stable")], sizes, wanted)[:most]


def _first_that_fit(groups: Numbers, sizes: Numbers, wanted: int) -> list[int]:
    chosen = []
    for begin in range(0, len(groups), CHUNK):
        some = groups[begin : begin + CHUNK]
        for group, size in zip(some.tolist(), sizes[some].tolist(), strict=True):
            if size <= wanted:
                chosen.append(group)
                wanted -= size
                if not wanted:
                    return chosen
    return chosen


def _sum_near(groups: Numbers, sizes: Numbers, wanted: int, kept: list[int]) -> list[int]:
    """`kept` and further groups that bring their sum nearest to `wanted`: an exact search up to `MAX_SUM_BYTES`."""
    free = groups[np.isin(groups, kept, invert=True)]
    missing = wanted - int(sizes[kept].sum())
    limit = max(2 * missing, int(sizes[free].min()) if len(free) else 0)
    of_size = {size: free[sizes[free] == size] for size in np.unique(sizes[free]).tolist() if size <= limit}
    sums, mask, steps, spent = 1, (1 << (limit + 1)) - 1, [], 0
    for size, count in _parcels({size: len(some) for size, some in of_size.items()}, limit):
        steps.append((sums, size, count))
        sums |= (sums << (size * count)) & mask
        spent += limit // 8
        if sums >> missing & 1 or spent > MAX_SUM_BYTES:
            break
    reachable = _nearest_bit(sums, missing, limit, at_least=0 if kept else 1)
    counts: dict[int, int] = {}
    for before, size, count in reversed(steps):
        if not before >> reachable & 1:
            counts[size] = counts.get(size, 0) + count
            reachable -= size * count
    return [*kept, *(group for size, count in counts.items() for group in of_size[size][:count].tolist())]


def _parcels(counts: dict[int, int], limit: int) -> list[tuple[int, int]]:
    """(size, count) whose subsets give every number of groups of each size: counts 1, 2, 4, … and a rest."""
    found = []
    for size in sorted(counts):
        left, count = min(counts[size], limit // size), 1
        while left > 0:
            found.append((size, min(count, left)))
            left -= count
            count *= 2
    return found


def _nearest_bit(sums: int, wanted: int, limit: int, at_least: int) -> int:
    """The number nearest to `wanted` whose bit is set, at least `at_least`; 0 without one."""
    for distance in range(limit + 1):
        for number in (wanted - distance, wanted + distance):
            if at_least <= number <= limit and sums >> number & 1:
                return number
    return 0
