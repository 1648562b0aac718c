"""The split of each row: the one that the data gives, or a division of exact sizes by groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.data.preparing.divide import SplitWish, divide, wanted_rows
from engines.data.preparing.groups import CHUNK, Groups
from engines.data.preparing.spool import UNSPLIT, Spool
from engines.data.split import SPLITS
from recipes.problems import OperatorError

LEFT_OUT = UNSPLIT
"""The number of a row that is in no split."""
Numbers = npt.NDArray[np.int64]
Heads = npt.NDArray[np.int32]
Splits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Assigned:
    """The split of each row as an index of `SPLITS`, or `LEFT_OUT`, and what is known about the division.

    Attributes:
        split: of each row.
        method: how the rows were divided, for the metadata.
        wanted: rows of each split that the recipe requests; empty where the data's own splits are kept.
        groups: number of groups, of groups of several rows, and of rows of the largest one.
        shared_rows: rows of train whose group is in val or test too; 0 unless the data gives its splits.
    """

    split: Splits
    method: str
    wanted: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    shared_rows: int = 0

    @property
    def deviation(self) -> dict[str, int]:
        """How many rows a split has more than requested; only splits that differ."""
        got = {split: int(np.count_nonzero(self.split == index)) for index, split in enumerate(SPLITS)}
        return {split: got[split] - rows for split, rows in self.wanted.items() if got[split] != rows}


def assign_rows(
    spool: Spool,
    kept: npt.NDArray[np.bool_],
    similar: Iterable[tuple[int, int]],
    given: Sequence[str],
    wish: SplitWish,
    group_by: Sequence[str],
) -> Assigned:
    """Give every kept row a split.

    Args:
        spool: the rows.
        kept: the rows that are not left out.
        similar: pairs of rows that must be in one split.
        given: the splits that the data itself has, or fewer than two of them.
        wish: the sizes that the recipe requests.
        group_by: keys of rows that must be in one split: "group", "prompt" and "category".

    Raises:
        OperatorError: the rows cannot be divided as requested.
    """
    heads = _heads(spool, kept, similar, group_by)
    split = np.where(kept, np.frombuffer(spool.given, dtype=np.uint8), np.uint8(LEFT_OUT)).astype(np.uint8)
    if len(given) < 2:
        divided, wanted = _divide(spool, np.flatnonzero(kept), heads, wish)
        split[kept] = divided
        return Assigned(split, "divided by groups of rows", wanted, _sizes(heads, kept))
    wish = _only_missing(wish, given)
    method = "given by the data's files"
    if len(wish.requested) > 1:
        train = np.flatnonzero(split == 0)
        divided, _ = _divide(spool, train, heads, wish)
        split[train] = divided
        method += f"; {' and '.join(wish.requested[1:])} taken from train"
    return Assigned(split, method, {}, _sizes(heads, kept), _shared_rows(split, heads))


def _heads(
    spool: Spool, kept: npt.NDArray[np.bool_], similar: Iterable[tuple[int, int]], group_by: Sequence[str]
) -> Heads:
    groups = Groups(len(spool))
    for name in ("content", *group_by):
        column = _keys(spool, name)
        column[~kept] = 0
        groups.join_equal(column)
    groups.join_all(similar)
    return groups.heads()


def _keys(spool: Spool, name: str) -> npt.NDArray[np.uint64]:
    """A copy of the keys by which rows are joined; 0 for a row without one."""
    if name == "content":
        return np.frombuffer(spool.contents, dtype=np.uint64)[::2].copy()
    if name == "category":
        return np.frombuffer(spool.categories, dtype=np.uint16).astype(np.uint64) + np.uint64(1)
    known = np.frombuffer({"group": spool.groups, "prompt": spool.prompts}[name], dtype=np.uint64)
    keys = np.zeros(len(spool), dtype=np.uint64)
    keys[: len(known)] = known
    return keys


def _divide(spool: Spool, rows: Numbers, heads: Heads, wish: SplitWish) -> tuple[Splits, dict[str, int]]:
    """The splits of some rows, and the wanted sizes."""
    wanted = wanted_rows(len(rows), wish)
    sizes = np.bincount(heads[rows], minlength=len(spool))
    group = (np.cumsum(sizes > 0, dtype=np.int32) - np.int32(1))[heads[rows]]  # the number of each row's group
    sizes = sizes[sizes > 0]
    order = np.zeros(len(sizes), dtype=np.uint64)
    digests = np.frombuffer(spool.contents, dtype=np.uint64)[::2]
    for begin in range(0, len(rows), CHUNK):
        some = slice(begin, begin + CHUNK)
        # a sum of keyed hashes is as equally distributed as one of them, for any size of the group
        np.add.at(order, group[some], digests[rows[some]])
    return divide(sizes, order, wanted)[group], wanted


def _only_missing(wish: SplitWish, given: Sequence[str]) -> SplitWish:
    """The counts of the splits that the data does not give; shares are of data without splits."""
    for split, rows in (("val", wish.val_rows), ("test", wish.test_rows)):
        if rows and split in given:
            raise OperatorError(
                f"{split}_rows — got {rows}; the data gives a {split} split of its own",
                f"remove {split}_rows, or prepare from the train file alone",
            )
    return SplitWish(0.0, 0.0, wish.val_rows, wish.test_rows)


def _sizes(heads: Heads, kept: npt.NDArray[np.bool_]) -> dict[str, int]:
    sizes = np.bincount(heads[kept])
    return {
        "groups": int(np.count_nonzero(sizes)),
        "of_several_rows": int(np.count_nonzero(sizes > 1)),
        "largest_rows": int(sizes.max(initial=0)),
    }


def _shared_rows(split: Splits, heads: Heads) -> int:
    held_out = np.unique(heads[(split == SPLITS.index("val")) | (split == SPLITS.index("test"))])
    return int(np.count_nonzero(np.isin(heads[split == SPLITS.index("train")], held_out)))
