"""Rows that share most of their words: MinHash proposes pairs, and the exact Jaccard similarity decides.

A row's shingles are its runs of five words, in lower case, of all turns but system turns. Signatures lie on disk,
sorted by band, so memory does not depend on the number of rows.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from engines.data.preparing.bands import PERMUTATIONS, bands_of
from engines.data.preparing.duplicates import ROW, NearRepeats, Repeats, are_of_two_splits, rank_of, row_of
from engines.data.preparing.groups import Edges
from engines.data.preparing.segments import ByPosition, joined, with_first
from engines.data.preparing.sorted_rows import ScratchFile, Sorter, Table
from engines.data.preparing.spool import Spool
from engines.data.readers.row import Message, MessageRow, PreferenceRow, Row, TextRow

WORDS = 5
MAX_HEADS = 32
"""Most rows of one bucket that a row is compared with: a bucket of thousands is not compared pair by pair."""
CACHED_SHINGLES = 100_000
"""Most shingles in memory of rows that were compared last."""
REMEMBERED_PAIRS = 50_000
"""Pairs found to be different that are not compared again in another band."""
NOTED_PAIRS = 16384
ROWS_AT_ONCE = 512
SHINGLES_AT_ONCE = 100_000
"""Rows, and their shingles, whose signatures are computed at once."""
PAGE_ROWS = 4096
MAX_PAGES = 256
_WORD = re.compile(r"\w+|[^\w\s]")
_TYPES: dict[str, type[Row]] = {"messages": MessageRow, "text": TextRow, "preference": PreferenceRow}
Reported = Callable[[int, int], None]


def shingles_of(row: Row) -> set[str]:
    """The runs of `WORDS` words of a row; all of its words as one run if it has fewer."""
    words = _WORD.findall("\n".join(_texts(row)).lower())
    if len(words) < WORDS:
        return {" ".join(words)}
    return set(map(" ".join, zip(*(words[at:] for at in range(WORDS)), strict=False)))


def near_repeats(spool: Spool, repeats: Repeats, similarity: float, report: Reported) -> NearRepeats:
    """The rows whose Jaccard similarity with another one is at least `similarity`.

    Args:
        spool: the rows.
        repeats: the rows that repeat another exactly; they are not compared.
        similarity: the threshold, above 0.
        report: called with rows done and in total; an exception from it ends the work.
    """
    bands, length = bands_of(similarity)
    hashes = _band_table(spool, repeats, bands, length, report)
    comparison = _Comparison(spool, similarity)
    clusters, not_compared = Edges(spool.folder), Sorter(spool.folder, 1, unique=True)
    for band, buckets in _buckets(hashes.stream()):
        pairs, left_out = comparison.compared(band, buckets)
        clusters.join(pairs[0], pairs[1])
        not_compared.add(left_out)
        report(band, bands)
    report(bands, bands)
    rows_left_out = sum(chunk.shape[1] for chunk in not_compared.stream())
    return _near_of(spool, repeats, clusters.heads(), rows_left_out)


def _near_of(spool: Spool, repeats: Repeats, heads: Table, not_compared: int) -> NearRepeats:
    """What is known of all rows, from the first of each cluster of ranks."""
    near, copies = Sorter(spool.folder, 2), Sorter(spool.folder, 2)
    for rank, head in heads:
        near.add(row_of(rank), head)
    for row, rank in repeats.rows:
        copies.add(rank, row)
    for head, row in joined(copies.stream(), heads):
        near.add(row, head)
    first, similar, across = Sorter(spool.folder, 2), Sorter(spool.folder, 2), 0
    near_rows, repeated = ByPosition(near.stream()), repeats.repeated()
    for begin, facts in spool.facts():
        end = begin + len(facts)
        own = rank_of(facts["given"], begin)
        same = repeated.values(begin, end, own)
        nearest = near_rows.values(begin, end, same)
        for table, different in ((first, nearest != own), (similar, nearest != same)):
            table.add(row_of(own[different]), nearest[different])
        across += int(np.count_nonzero(are_of_two_splits(own, nearest) & (nearest != same)))
    return NearRepeats(first.table(), similar.table(), across, not_compared)


def _band_table(spool: Spool, repeats: Repeats, bands: int, length: int, report: Reported) -> Sorter:
    """(band, hash, rank) of every row that repeats no other."""
    decoder = msgspec.json.Decoder(_TYPES[spool.kind])
    table, lines, repeated = Sorter(spool.folder, 3), spool.lines(), repeats.repeated()
    sets: list[list[str]] = []
    ranks: list[int] = []
    shingles = 0
    for begin, facts in spool.facts():
        left_out = repeated.mask(begin, begin + len(facts)).tolist()
        for rank, repeat, line in zip(rank_of(facts["given"], begin).tolist(), left_out, lines, strict=False):
            if repeat:
                continue
            sets.append(list(shingles_of(decoder.decode(line))))
            ranks.append(rank)
            shingles += len(sets[-1])
            if len(sets) >= ROWS_AT_ONCE or shingles >= SHINGLES_AT_ONCE:
                _add_bands(table, _band_hashes(sets, bands, length), ranks)
                report(rank & ROW, len(spool))
                sets, ranks, shingles = [], [], 0
    if sets:
        _add_bands(table, _band_hashes(sets, bands, length), ranks)
    return table


def _add_bands(table: Sorter, hashes: npt.NDArray[np.uint64], ranks: list[int]) -> None:
    bands, rows = hashes.shape
    table.add(np.repeat(np.arange(bands), rows), hashes.ravel(), np.tile(np.array(ranks, dtype=np.uint64), bands))


def _band_hashes(sets: list[list[str]], bands: int, length: int) -> npt.NDArray[np.uint64]:
    """Of each set of shingles one hash per band, [bands, sets]."""
    sketches = RMinHash.digests_from_token_sets(sets, num_perm=PERMUTATIONS, seed=1)
    numbers = np.array(sketches, dtype=np.uint64)[:, : bands * length].reshape(len(sets), bands, length)
    mixed = np.zeros((len(sets), bands), dtype=np.uint64)
    for column in range(length):  # FNV-1a over the numbers of a band
        mixed = (mixed ^ numbers[:, :, column]) * np.uint64(0x100000001B3) + np.uint64(0x9E3779B97F4A7C15)
    return mixed.T


def _buckets(chunks: Iterator[npt.NDArray[np.uint64]]) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """Of each band, the rows that agree with an earlier one in all its numbers: (first rank, rank) in chunks, sorted.

    In a bucket, rows are in the order in which the first of similar ones is kept.
    """
    for rows, first in with_first(chunks, 2):
        later = rows[2] != first[2]
        for band in np.unique(rows[0][later]).tolist():
            some = later & (rows[0] == np.uint64(band))
            for begin in range(0, int(np.count_nonzero(some)), NOTED_PAIRS):
                part = np.flatnonzero(some)[begin : begin + NOTED_PAIRS]
                yield int(band), np.stack([rows[1][part], first[2][part], rows[2][part]])


class _Roots:
    """For each row a row that it was joined with before, on disk; the pages that were used last are in memory."""

    def __init__(self, folder: Path) -> None:
        self._file = ScratchFile(folder)
        self._pages: OrderedDict[int, npt.NDArray[np.uint32]] = OrderedDict()

    def of(self, row: int) -> int:
        """The same row for all rows that were joined with one another."""
        while above := self._page(row // PAGE_ROWS)[row % PAGE_ROWS]:
            row = int(above) - 1
        return row

    def join(self, one: int, other: int) -> None:
        """Join two rows that are roots."""
        self._page(other // PAGE_ROWS)[other % PAGE_ROWS] = one + 1

    def _page(self, number: int) -> npt.NDArray[np.uint32]:
        page = self._pages.get(number)
        if page is not None:
            self._pages.move_to_end(number)
            return page
        if len(self._pages) >= MAX_PAGES:
            place, oldest = self._pages.popitem(last=False)
            self._file.write(oldest, place * oldest.nbytes)
        page = self._pages[number] = np.zeros(PAGE_ROWS, dtype=np.uint32)
        self._file.read(page, number * page.nbytes)
        return page


class _Comparison:
    """Reads rows of the spool again and compares their shingles; a cache keeps the latest."""

    def __init__(self, spool: Spool, similarity: float) -> None:
        self._spool = spool
        self._similarity = similarity
        self._decoder = msgspec.json.Decoder(_TYPES[spool.kind])
        self._cache: OrderedDict[int, set[str]] = OrderedDict()
        self._cached_shingles = 0
        self._roots = _Roots(spool.folder)
        self._different: set[int] = set()
        self._bucket = (-1, -1)
        self._heads: list[int] = []

    def compared(self, band: int, rows: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], ...]:
        """Compare rows with the first ones of their buckets, which may continue from the call before.

        Args:
            band: the band.
            rows: (hash, rank of the bucket's first row, rank), sorted.

        Returns:
            Pairs of ranks that are similar, [2, pairs], and ranks that were not compared with all of their bucket.
        """
        pairs: list[tuple[int, int]] = []
        left_out: list[int] = []
        for key, first, rank in rows.T.tolist():
            if (band, key) != self._bucket:
                self._bucket, self._heads = (band, key), [first]
            similar = next((head for head in self._heads if self._are_similar(head, rank)), None)
            if similar is not None:
                pairs.append((similar, rank))
            elif len(self._heads) < MAX_HEADS:
                self._heads.append(rank)
            else:
                left_out.append(rank)
        found = np.array(pairs, dtype=np.uint64).reshape(-1, 2).T
        return found, np.array(left_out, dtype=np.uint64)

    def _are_similar(self, one_rank: int, other_rank: int) -> bool:
        pair = one_rank << 32 | other_rank
        if pair in self._different:
            return False
        one, other = one_rank & ROW, other_rank & ROW
        roots = self._roots.of(one), self._roots.of(other)
        if roots[0] == roots[1]:
            return True
        first, second = self._shingles(one), self._shingles(other)
        smaller, larger = sorted((len(first), len(second)))
        common = len(first & second) if smaller >= self._similarity * larger else 0
        if common < self._similarity * (len(first) + len(second) - common):
            if len(self._different) >= REMEMBERED_PAIRS:
                self._different.clear()
            self._different.add(pair)
            return False
        self._roots.join(*roots)
        return True

    def _shingles(self, row: int) -> set[str]:
        found = self._cache.get(row)
        if found is not None:
            self._cache.move_to_end(row)
            return found
        found = self._cache[row] = shingles_of(self._decoder.decode(self._spool.line(row)))
        self._cached_shingles += len(found)
        while self._cached_shingles > CACHED_SHINGLES and len(self._cache) > 1:
            self._cached_shingles -= len(self._cache.popitem(last=False)[1])
        return found


def _texts(row: Row) -> list[str]:
    if isinstance(row, TextRow):
        return [row.text]
    turns: list[Message] = row.messages if isinstance(row, MessageRow) else [*row.prompt, *row.chosen, *row.rejected]
    return [turn.content for turn in turns if turn.role != "system"]
