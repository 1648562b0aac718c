"""Divide groups of rows into splits of exact sizes: no group is in two splits.

Groups of one row give the exact counts. For larger groups the nearest possible counts are found: groups are taken in
the order of a keyed hash, and a sum of group sizes (subset sum, as a set of bits) fills what is left. Groups are read
in a stream; in memory is how many there are of each size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations
from math import floor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.data.preparing.sorted_rows import Columns, Sorter, Table
from engines.data.split import SPLITS
from recipes.problems import OperatorError

Numbers = npt.NDArray[np.int64]
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


def divide(groups: Table, wanted: dict[str, int], scratch: Path) -> Table:
    """The groups of the splits that are held out, as (group, index of the split), by group; the others are train.

    Test is the nearest possible to its wanted size, then val among the groups that are left; no requested split is
    empty.

    Args:
        groups: (order, group, rows of the group). The order is a number that is equally distributed and independent of
            the size: the order of choice.
        wanted: rows of each split; they add up to the sum of the sizes.
        scratch: an existing folder for files.

    Raises:
        OperatorError: there are fewer groups than requested splits.
    """
    requested = [split for split in SPLITS if wanted[split]]
    if len(groups) < len(requested):
        raise OperatorError(
            f"group_by — cannot divide {len(groups)} group(s) of rows into {', '.join(requested)}: rows of one group"
            " stay together",
            "set group_by to fewer keys, set val_fraction = 0 and test_fraction = 0, or give more data",
        )
    held_out = Sorter(scratch, 2)
    needed = len(requested)
    for split in HELD_OUT:
        if not wanted[split]:
            continue
        needed -= 1
        choice = _nearest(groups, wanted[split], len(groups) - needed)
        rest = Sorter(scratch, 3)
        for chunk, chosen in _applied(choice, groups):
            group = chunk[1][chosen]
            held_out.add(group, np.full(len(group), SPLITS.index(split), dtype=np.uint64))
            rest.add(*chunk[:, ~chosen])
        groups = rest.table()
    return held_out.table()


@dataclass(frozen=True)
class _Choice:
    """Some of the groups.

    Attributes:
        wanted: the first groups in order whose sizes fit into this number of rows,
        first: and no more than this number of them;
        counts: of what is left, the first groups of each size;
        groups: these groups too.
        sizes: how many groups of each size that is altogether.
    """

    wanted: int = 0
    first: int = 0
    counts: dict[int, int] = field(default_factory=dict)
    groups: frozenset[int] = frozenset()
    sizes: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return self.sizes.total()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(size * count for size, count in self.sizes.items())


def _applied(choice: _Choice, groups: Table) -> Iterator[tuple[Columns, npt.NDArray[np.bool_]]]:
    """All groups, and whether they are chosen."""
    room, first, counts = choice.wanted, choice.first, dict(choice.counts)
    for chunk in groups:
        sizes = chunk[2].astype(np.int64)
        chosen = _that_fit(sizes, room, first)
        room, first = room - int(sizes[chosen].sum()), first - int(np.count_nonzero(chosen))
        for size, count in counts.items():
            if count:
                some = np.flatnonzero((sizes == size) & ~chosen)[:count]
                chosen[some] = True
                counts[size] -= len(some)
        for group in choice.groups:
            chosen |= chunk[1] == np.uint64(group)
        yield chunk, chosen


def _that_fit(sizes: Numbers, room: int, most: int) -> npt.NDArray[np.bool_]:
    """Which groups are chosen, one after another, if each is that still fits into `room`, at most `most` of them."""
    if len(sizes) <= most and int(sizes.sum()) <= room:
        return np.ones(len(sizes), dtype=bool)
    chosen = np.zeros(len(sizes), dtype=bool)
    for place in np.flatnonzero(sizes <= room).tolist() if most else []:
        size = int(sizes[place])
        if size <= room:
            chosen[place] = True
            room, most = room - size, most - 1
            if not room or not most:
                break
    return chosen


def _nearest(groups: Table, wanted: int, most: int) -> _Choice:
    """Between 1 and `most` groups whose sizes add up as nearly as possible to `wanted`, mostly the first in order."""
    best = first = _first_that_fit(groups, wanted, len(groups))
    distance = wanted - first.rows
    back = 1
    while distance and back < 2 * len(first) + 2:
        filled = _sum_near(groups, wanted, max(len(first) - back, 0))
        farther = abs(wanted - filled.rows)
        if farther < distance or not len(best):
            best, distance = filled, farther
        back *= 2
    return best if 1 <= len(best) <= most else _few(groups, wanted, most)


def _few(groups: Table, wanted: int, most: int) -> _Choice:
    """At most `most` groups near `wanted`, where more would be nearer but leave none for another split.

    Of few groups all choices are tried; of many, the smallest are left out.
    """
    if len(groups) <= TRIED_GROUPS:
        _, names, sizes = (column.tolist() for column in groups.rows(0, len(groups)))
        numbers = range(len(names))
        choices = (some for count in range(1, most + 1) for some in combinations(numbers, count))
        best = min(choices, key=lambda some: abs(wanted - sum(sizes[number] for number in some)))
        return _Choice(groups=frozenset(names[number] for number in best), sizes=Counter(sizes[n] for n in best))
    counts: Counter[int] = Counter()
    there = _sizes(groups)
    for size in sorted(there, reverse=True):
        if count := min(there[size], wanted // size, most - counts.total()):
            counts[size] = count
            wanted -= size * count
    if not counts:
        counts[min(there)] = 1
    return _Choice(counts=dict(counts), sizes=counts)


def _sizes(groups: Table) -> Counter[int]:
    """How many groups of each size there are."""
    found: Counter[int] = Counter()
    for chunk in groups:
        _count(found, chunk[2])
    return found


def _count(counts: Counter[int], sizes: npt.NDArray[np.uint64]) -> None:
    different, times = np.unique(sizes, return_counts=True)
    counts.update(dict(zip(different.tolist(), times.tolist(), strict=True)))


def _first_that_fit(groups: Table, wanted: int, most: int) -> _Choice:
    """The first groups in order that fit into `wanted` rows, at most `most`."""
    choice = _Choice(wanted, most)
    if not most:
        return choice
    for chunk, chosen in _applied(choice, groups):
        _count(choice.sizes, chunk[2][chosen])
        if choice.rows == wanted or len(choice) == most:
            break
    return choice


def _sum_near(groups: Table, wanted: int, kept: int) -> _Choice:
    """The first `kept` groups that fit and further ones that bring the sum nearest to `wanted`: an exact search up to
    `MAX_SUM_BYTES`."""
    first = _first_that_fit(groups, wanted, kept)
    free = _sizes(groups) - first.sizes
    missing = wanted - first.rows
    limit = max(2 * missing, min(free, default=0))
    sums, mask, steps, spent = 1, (1 << (limit + 1)) - 1, [], 0
    for size, count in _parcels({size: count for size, count in free.items() if size <= limit}, limit):
        steps.append((sums, size, count))
        sums |= (sums << (size * count)) & mask
        spent += limit // 8
        if sums >> missing & 1 or spent > MAX_SUM_BYTES:
            break
    reachable = _nearest_bit(sums, missing, limit, at_least=0 if kept else 1)
    counts: Counter[int] = Counter()
    for before, size, count in reversed(steps):
        if not before >> reachable & 1:
            counts[size] += count
            reachable -= size * count
    return _Choice(wanted, kept, dict(counts), sizes=first.sizes + counts)


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
