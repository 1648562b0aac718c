"""The split of each row: the one that the data gives, or a division of exact sizes by groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.data.preparing.divide import SplitWish, divide, wanted_rows
from engines.data.preparing.duplicates import row_of
from engines.data.preparing.groups import Edges
from engines.data.preparing.segments import ByPosition, joined, totals
from engines.data.preparing.sorted_rows import Column, ScratchFile, Sorter, Table
from engines.data.preparing.spool import CHUNK_ROWS, UNSPLIT, Facts, Spool
from engines.data.split import SPLITS
from recipes.problems import OperatorError

LEFT_OUT = UNSPLIT
"""The number of a row that is in no split."""
Mask = npt.NDArray[np.bool_]
Splits = npt.NDArray[np.uint8]
Chosen = Callable[[Facts, Mask], Mask]


class SplitColumn:
    """The split of each row on disk, by position: an index of `SPLITS`, or `LEFT_OUT`."""

    def __init__(self, spool: Spool, chunks: Iterator[Splits]) -> None:
        """Write the splits of all rows, in the chunks of `Spool.facts`."""
        self.rows = [0] * (len(SPLITS) + 1)
        self._length = len(spool)
        self._file = ScratchFile(spool.folder)
        for chunk in chunks:
            self._file.append(chunk)
            for index, count in enumerate(np.bincount(chunk, minlength=len(self.rows)).tolist()):
                self.rows[index] += count

    def __iter__(self) -> Iterator[Splits]:
        """The splits, in the chunks of `Spool.facts`."""
        for begin in range(0, self._length, CHUNK_ROWS):
            found = np.empty(min(CHUNK_ROWS, self._length - begin), dtype=np.uint8)
            self._file.read(found, begin)
            yield found


@dataclass(frozen=True)
class Assigned:
    """The split of each row, and what is known about the division.

    Attributes:
        split: of each row.
        method: how the rows were divided, for the metadata.
        wanted: rows of each split that the recipe requests; empty where the data's own splits are kept.
        groups: number of groups, of groups of several rows, and of rows of the largest one.
        shared_rows: rows of train whose group is in val or test too; 0 unless the data gives its splits.
    """

    split: SplitColumn
    method: str
    wanted: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    shared_rows: int = 0

    @property
    def deviation(self) -> dict[str, int]:
        """How many rows a split has more than requested; only splits that differ."""
        got = dict(zip(SPLITS, self.split.rows, strict=False))
        return {split: got[split] - rows for split, rows in self.wanted.items() if got[split] != rows}


class _Rows:
    """The rows that are divided: which of them are not left out, and the first row of each one's group."""

    def __init__(
        self, spool: Spool, left_out: Sequence[Table], similar: Sequence[Table], group_by: Sequence[str]
    ) -> None:
        self.spool = spool
        self._left_out = left_out
        self.heads = self._heads(similar, group_by)

    def chunks(self) -> Iterator[tuple[int, Facts, Mask]]:
        """The records in chunks, with the position of the first, and whether each row is kept."""
        left_out = [ByPosition(table) for table in self._left_out]
        for begin, facts in self.spool.facts():
            kept = np.ones(len(facts), dtype=bool)
            for rows in left_out:
                kept &= ~rows.mask(begin, begin + len(facts))
            yield begin, facts, kept

    def with_heads(self) -> Iterator[tuple[Facts, Mask, Column]]:
        """The records in chunks, with whether each row is kept, and the first row of its group."""
        heads = ByPosition(self.heads)
        for begin, facts, kept in self.chunks():
            end = begin + len(facts)
            yield facts, kept, heads.values(begin, end, np.arange(begin, end, dtype=np.uint64))

    def _heads(self, similar: Sequence[Table], group_by: Sequence[str]) -> Table:
        """The first row of each row's group, as (row, first), for the rows that are not first themselves."""
        edges = Edges(self.spool.folder)
        for name in group_by:
            keys = Sorter(self.spool.folder, 2)
            for begin, facts, kept in self.chunks():
                key = _key(facts, name)
                rows = np.flatnonzero(kept & (key != 0))
                keys.add(key[rows], rows.astype(np.uint64) + np.uint64(begin))
            edges.join_equal(keys.stream())
        for table in similar:
            for row, rank in table:
                edges.join(row, row_of(rank))
        return edges.heads()


def _key(facts: Facts, name: str) -> Column:
    """The numbers by which rows are joined; 0 for a row that is joined with none."""
    if name == "category":
        return facts["category"].astype(np.uint64) + np.uint64(1)
    return facts[name].astype(np.uint64)


def assign_rows(
    spool: Spool,
    left_out: Sequence[Table],
    similar: Sequence[Table],
    given: Sequence[str],
    wish: SplitWish,
    group_by: Sequence[str],
) -> Assigned:
    """Give every row that is not left out a split.

    Args:
        spool: the rows.
        left_out: rows that are left out, in the first column.
        similar: pairs of rows that must be in one split, as (row, rank of the other): rows that repeat another, too.
        given: the splits that the data itself has, or fewer than two of them.
        wish: the sizes that the recipe requests.
        group_by: keys of rows that must be in one split: "group", "prompt" and "category".

    Raises:
        OperatorError: the rows cannot be divided as requested.
    """
    rows = _Rows(spool, left_out, similar, group_by)
    every = _groups(rows, _all)
    if len(given) < 2:
        wanted = wanted_rows(every.rows, wish)
        split = SplitColumn(spool, _divided(rows, _all, divide(every.table, wanted, spool.folder)))
        return Assigned(split, "divided by groups of rows", wanted, every.sizes)
    wish = _only_missing(wish, given)
    method, held_out = "given by the data's files", Table(2)
    if len(wish.requested) > 1:
        train = _groups(rows, _of_train)
        held_out = divide(train.table, wanted_rows(train.rows, wish), spool.folder)
        method += f"; {' and '.join(wish.requested[1:])} taken from train"
    split = SplitColumn(spool, _divided(rows, _of_train, held_out))
    return Assigned(split, method, {}, every.sizes, _shared_rows(rows, split))


def _all(_facts: Facts, kept: Mask) -> Mask:
    return kept


def _of_train(facts: Facts, kept: Mask) -> Mask:
    return kept & (facts["given"] == SPLITS.index("train"))


@dataclass(frozen=True)
class _Groups:
    """The groups of some rows: (order, first row, rows), their sizes for the metadata, and the number of rows."""

    table: Table
    sizes: dict[str, int]
    rows: int


def _groups(rows: _Rows, chosen: Chosen) -> _Groups:
    scratch = rows.spool.folder
    by_head, found = Sorter(scratch, 2), Sorter(scratch, 3)
    for facts, kept, heads in rows.with_heads():
        some = chosen(facts, kept)
        by_head.add(heads[some], facts["content"][some])
    groups = several = largest = total = 0
    for head, count, order in totals(by_head.stream()):
        # a sum of keyed hashes is as equally distributed as one of them, for any size of the group
        found.add(order, head, count)
        groups, several = groups + len(head), several + int(np.count_nonzero(count > 1))
        largest, total = max(largest, int(count.max(initial=0))), total + int(count.sum())
    sizes = {"groups": groups, "of_several_rows": several, "largest_rows": largest}
    return _Groups(found.table(), sizes, total)


def _divided(rows: _Rows, chosen: Chosen, held_out: Table) -> Iterator[Splits]:
    """The split of each row, in chunks: that of its group for the chosen ones, the given one for the others."""
    of_row = Sorter(rows.spool.folder, 2)
    for head, split in held_out:
        of_row.add(head, split)
    others = Sorter(rows.spool.folder, 2)
    for row, head in rows.heads:
        others.add(head, row)
    for split, row in joined(others.stream(), held_out):
        of_row.add(row, split)
    splits = ByPosition(of_row.stream())
    for begin, facts, kept in rows.chunks():
        some = chosen(facts, kept)
        found = splits.values(begin, begin + len(facts), np.zeros(len(facts), dtype=np.uint64))
        given = np.where(kept, facts["given"], np.uint8(LEFT_OUT))
        yield np.where(some, found, given).astype(np.uint8)


def _only_missing(wish: SplitWish, given: Sequence[str]) -> SplitWish:
    """The counts of the splits that the data does not give; shares are of data without splits."""
    for split, rows in (("val", wish.val_rows), ("test", wish.test_rows)):
        if rows and split in given:
            raise OperatorError(
                f"{split}_rows — got {rows}; the data gives a {split} split of its own",
                f"remove {split}_rows, or prepare from the train file alone",
            )
    return SplitWish(0.0, 0.0, wish.val_rows, wish.test_rows)


def _shared_rows(rows: _Rows, split: SplitColumn) -> int:
    """Rows of train whose group has a row in val or test."""
    by_head, held_out, shared = Sorter(rows.spool.folder, 2), np.uint64(2**32), 0
    for (_, _, heads), splits in zip(rows.with_heads(), split, strict=True):
        some = splits != LEFT_OUT
        by_head.add(heads[some], np.where(splits[some] == SPLITS.index("train"), np.uint64(1), held_out))
    for _, _, counts in totals(by_head.stream()):
        shared += int((counts[counts >= held_out] % held_out).sum())
    return shared
