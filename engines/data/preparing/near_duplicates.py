"""Rows that share most of their words: MinHash proposes pairs, and the exact Jaccard similarity decides.

A row's shingles are its runs of five words, in lower case, of all turns but system turns. Signatures lie on disk, and
candidates are found band by band, so memory has one band at a time.
"""

from __future__ import annotations

import re
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
from rensa import RMinHash

from engines.data.preparing.spool import Spool
from engines.data.readers.row import Message, MessageRow, PreferenceRow, Row, TextRow
from engines.files import open_regular

PERMUTATIONS = 128
WORDS = 5
RECALL = 0.99
"""Share of the pairs at the threshold itself that become candidates; of more similar ones it is higher."""
MAX_HEADS = 32
"""Most rows of one bucket that a row is compared with: a bucket of thousands is not compared pair by pair."""
CACHED_ROWS = 4096
REMEMBERED_PAIRS = 1_000_000
"""Pairs found to be different that are not compared again in another band."""
ROWS_AT_ONCE = 512
_WORD = re.compile(r"\w+|[^\w\s]")
_TYPES: dict[str, type[Row]] = {"messages": MessageRow, "text": TextRow, "preference": PreferenceRow}
Join = Callable[[int, int], None]
Reported = Callable[[int, int], None]


def bands_of(similarity: float) -> tuple[int, int]:
    """Number of bands, and rows of a band, for a threshold.

    Two rows of similarity s agree in all r numbers of one of b bands with the probability 1 - (1 - s^r)^b. The longest
    bands that still propose `RECALL` of the pairs at the threshold propose the fewest others.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def shingles_of(row: Row) -> set[str]:
    """The runs of `WORDS` words of a row; all of its words as one run if it has fewer."""
    words = _WORD.findall("\n".join(_texts(row)).lower())
    if len(words) < WORDS:
        return {" ".join(words)}
    return set(map(" ".join, zip(*(words[at:] for at in range(WORDS)), strict=False)))


def join_similar(
    spool: Spool, candidates: npt.NDArray[np.int64], similarity: float, scratch: Path, join: Join, report: Reported
) -> int:
    """Call `join` for pairs of rows whose Jaccard similarity is at least `similarity`.

    Args:
        spool: the rows.
        candidates: the rows to compare, in the order in which the first of similar ones is kept.
        similarity: the threshold, above 0.
        scratch: an existing folder for the signatures.
        join: called with the earlier row and the similar one.
        report: called with rows done and in total; an exception from it ends the work.

    Returns:
        The number of rows that were not compared with all candidates, because more than `MAX_HEADS` different rows
        share a band with them.
    """
    bands, length = bands_of(similarity)
    signatures = scratch / "signatures"
    starts = _write_bands(spool, candidates, signatures, bands, length, report)
    comparison = _Comparison(spool, starts, similarity)
    left_out: set[int] = set()
    with comparison:
        for band in range(bands):
            for bucket in _buckets(signatures, candidates, band, bands):
                left_out.update(comparison.join_bucket(bucket, join))
            report(band + 1, bands)
    signatures.unlink()
    return len(left_out)


def _write_bands(
    spool: Spool, candidates: npt.NDArray[np.int64], file: Path, bands: int, length: int, report: Reported
) -> Sequence[int]:
    """Write one 64-bit hash per band and row; returns the offset of each row's line."""
    decoder = msgspec.json.Decoder(_TYPES[spool.kind])
    place = np.full(len(spool), -1, dtype=np.int64)
    place[candidates] = np.arange(len(candidates))
    table = np.memmap(file, dtype=np.uint64, mode="w+", shape=(bands, len(candidates)))
    sets: list[list[str]] = []
    places: list[int] = []
    starts, offset = array("Q"), 0
    with spool.lines() as lines:
        for number, (line, at) in enumerate(zip(lines, place.tolist(), strict=True)):
            starts.append(offset)
            offset += len(line)
            if at >= 0:
                sets.append(list(shingles_of(decoder.decode(line))))
                places.append(at)
            if len(sets) >= ROWS_AT_ONCE:
                table[:, places] = _band_hashes(sets, bands, length)
                sets, places = [], []
                report(number, len(spool))
    if sets:
        table[:, places] = _band_hashes(sets, bands, length)
    table.flush()
    return starts


def _band_hashes(sets: list[list[str]], bands: int, length: int) -> npt.NDArray[np.uint64]:
    """Of each set of shingles one hash per band, [bands, sets]."""
    sketches = RMinHash.digests_from_token_sets(sets, num_perm=PERMUTATIONS, seed=1)
    numbers = np.array(sketches, dtype=np.uint64)[:, : bands * length].reshape(len(sets), bands, length)
    mixed = np.zeros((len(sets), bands), dtype=np.uint64)
    for column in range(length):  # FNV-1a over the numbers of a band
        mixed = (mixed ^ numbers[:, :, column]) * np.uint64(0x100000001B3) + np.uint64(0x9E3779B97F4A7C15)
    return mixed.T


def _buckets(file: Path, candidates: npt.NDArray[np.int64], band: int, bands: int) -> Iterator[list[int]]:
    """The rows that agree in one band, in the order of the candidates; only buckets of several rows."""
    table = np.memmap(file, dtype=np.uint64, mode="r", shape=(bands, len(candidates)))
    keys = np.array(table[band])
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    for begin, end in zip([0, *ends.tolist()], [*ends.tolist(), len(order)], strict=True):
        if end - begin > 1:
            yield candidates[order[begin:end]].tolist()


class _Comparison:
    """Reads rows of the spool again and compares their shingles; a cache keeps the latest."""

    def __init__(self, spool: Spool, starts: Sequence[int], similarity: float) -> None:
        self._spool = spool
        self._starts = starts
        self._similarity = similarity
        self._decoder = msgspec.json.Decoder(_TYPES[spool.kind])
        self._cache: OrderedDict[int, set[str]] = OrderedDict()
        self._joined: dict[int, int] = {}
        self._different: set[tuple[int, int]] = set()

    def __enter__(self) -> None:
        self._file: BinaryIO = open_regular(self._spool.file)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def join_bucket(self, bucket: list[int], join: Join) -> Iterator[int]:
        """Join each row with the first similar one; yields the rows that were not compared with all."""
        heads: list[int] = []
        for row in bucket:
            similar = next((head for head in heads if self._are_similar(head, row)), None)
            if similar is not None:
                join(similar, row)
            elif len(heads) < MAX_HEADS:
                heads.append(row)
            else:
                yield row

    def _are_similar(self, one: int, other: int) -> bool:
        if (one, other) in self._different:
            return False
        if self._root(one) == self._root(other):
            return True
        first, second = self._shingles(one), self._shingles(other)
        smaller, larger = sorted((len(first), len(second)))
        common = len(first & second) if smaller >= self._similarity * larger else 0
        if common < self._similarity * (len(first) + len(second) - common):
            if len(self._different) >= REMEMBERED_PAIRS:
                self._different.clear()
            self._different.add((one, other))
            return False
        self._joined[self._root(other)] = self._root(one)
        return True

    def _root(self, row: int) -> int:
        while row in self._joined:
            row = self._joined[row]
        return row

    def _shingles(self, row: int) -> set[str]:
        found = self._cache.get(row)
        if found is None:
            self._file.seek(self._starts[row])
            found = self._cache[row] = shingles_of(self._decoder.decode(self._file.readline()))
            if len(self._cache) > CACHED_ROWS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(row)
        return found


def _texts(row: Row) -> list[str]:
    if isinstance(row, TextRow):
        return [row.text]
    turns: list[Message] = row.messages if isinstance(row, MessageRow) else [*row.prompt, *row.chosen, *row.rejected]
    return [turn.content for turn in turns if turn.role != "system"]
