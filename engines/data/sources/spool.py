"""Documents on the disk until their split is decided: in memory are a few numbers and a hash of each."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import msgspec

from engines.data.documents import Document, split_file
from engines.data.split import SPLITS, keyed_fraction
from engines.files import open_regular
from recipes.problems import OperatorError

LEFT_OUT = 255
"""The split of a document that `max_bytes`, a mixture, or a near duplicate leaves out."""
_DIGEST_BYTES = 16
Bounds = Mapping[str, tuple[float, float]]


@dataclass
class _Mark:
    """A place to return to when a file turns out to be no text."""

    documents: int
    position: int
    digests: list[bytes] = field(default_factory=list)


class DocumentSpool:
    """The documents of one or several sources in their order, without duplicates.

    Attributes:
        duplicates: documents of the current source with the text of an earlier one.
        across: those of them whose text an earlier source has.
        moved: documents that were moved to fill a split, by name.
    """

    def __init__(self, file: Path, seed: int, *, ordered: bool = True) -> None:
        """Begin an empty spool.

        Args:
            file: where the documents are kept; it is removed at the end.
            seed: key of the split and of the order.
            ordered: whether `limit` or `mix` may leave documents out, which needs a second number of each document.
        """
        self._ordered = ordered
        self._path = file
        self._file = file.open("wb")
        self._encoder = msgspec.json.Encoder()
        self._seed = seed
        self._seen: dict[bytes, int] = {}
        self._place, self._order = array("d"), array("d")
        self._sizes, self._lines = array("Q"), array("Q")
        self._ends: list[int] = []
        self._mark: _Mark | None = None
        self._split = bytearray()
        self._times = array("H")
        self.duplicates = self.across = 0
        self.moved: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the spool's file."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._sizes)

    # ---- reading a source

    def begin_source(self) -> None:
        """The documents that are added from now on belong to the next source."""
        self._ends.append(len(self))
        self.duplicates = self.across = 0

    def clear_source(self) -> None:
        """Forget the documents of the current source."""
        start = self._ends[-1] if self._ends else 0
        own = max(len(self._ends) - 1, 0)
        mine = [digest for digest, source in self._seen.items() if source == own]
        self._mark = _Mark(start, sum(self._lines[:start]), mine)
        self.undo()
        self._mark = None
        self.duplicates = self.across = 0

    @property
    def source_bytes(self) -> int:
        """Size of all texts of the current source in UTF-8."""
        return sum(self._sizes[self._ends[-1] if self._ends else 0 :])

    def longest(self, start: int) -> int:
        """Bytes of the longest text of the documents from a number on; 0 without any."""
        return max(self._sizes[start:], default=0)

    def add(self, name: str, text: str, group: str | None = None) -> None:
        """Append a document, unless an earlier one has the same text.

        Args:
            name: its name.
            text: its text.
            group: documents of one group are in one split; the document alone by default.
        """
        encoded = text.encode()
        digest = blake2b(encoded, digest_size=_DIGEST_BYTES).digest()
        source = max(len(self._ends) - 1, 0)
        first = self._seen.get(digest)
        if first is not None:
            self.duplicates += 1
            self.across += first != source
            return
        self._seen[digest] = source
        if self._mark is not None:
            self._mark.digests.append(digest)
        line = self._encoder.encode(Document(name, text)) + b"\n"
        self._file.write(line)
        self._place.append(keyed_fraction(self._seed, name if group is None else group))
        if self._ordered:
            self._order.append(keyed_fraction(self._seed, name, "order"))
        self._sizes.append(len(encoded))
        self._lines.append(len(line))

    def begin(self) -> None:
        """Remember this place; `undo` returns to it."""
        self._mark = _Mark(len(self), self._file.tell())

    def undo(self) -> None:
        """Forget the documents since `begin`."""
        assert self._mark is not None
        for numbers in (self._place, self._order, self._sizes, self._lines):
            del numbers[self._mark.documents :]
        for digest in self._mark.digests:
            self._seen.pop(digest, None)
        self._file.seek(self._mark.position)
        self._file.truncate()

    def end(self) -> None:
        """The documents since `begin` are kept."""
        self._mark = None

    # ---- deciding

    def texts(self) -> Iterator[str]:
        """The text of each document, in order."""
        self._file.flush()
        with open_regular(self._path) as lines:
            for size in self._lines:
                yield msgspec.json.decode(lines.read(size), type=Document).text

    def near(self, pairs: Iterator[tuple[int, int]], *, drop: bool) -> list[int]:
        """Drop the second document of each pair, or put the groups of both into one split.

        Returns:
            The number of documents that are a second one, by source.
        """
        self._decided()
        found = [0] * max(len(self._ends), 1)
        above: dict[float, float] = {}

        def root(place: float) -> float:
            while place in above:
                place = above[place]
            return place

        for first, number in pairs:
            found[self._source_of(number)] += 1
            if drop:
                self._split[number] = LEFT_OUT
            elif (one := root(self._place[first])) != (other := root(self._place[number])):
                above[max(one, other)] = min(one, other)
        if above:
            for number, place in enumerate(self._place):
                self._place[number] = root(place)
        return found

    def limit(self, max_bytes: int | None) -> int:
        """Leave out all documents, in the order of their keyed hash, from the first that exceeds `max_bytes` on.

        At least one stays. Returns the number of those left out.
        """
        self._decided()
        if max_bytes is None:
            return 0
        total, full, left_out = 0, False, 0
        for number in sorted(range(len(self)), key=self._order.__getitem__):
            if self._split[number] == LEFT_OUT:
                continue
            full = full or (total > 0 and total + self._sizes[number] > max_bytes)
            if full:
                self._split[number] = LEFT_OUT
                left_out += 1
            total += self._sizes[number]
        return left_out

    def assign(self, val_fraction: float, test_fraction: float) -> list[int]:
        """Give every document a split by the keyed hash of its group, as `assign_splits` does, in each source alone.

        Returns:
            The sources that have fewer groups than requested splits, if there are several sources: all of their
            documents are in train.

        Raises:
            OperatorError: fewer documents than requested splits.
        """
        bounds = {"test": (0.0, test_fraction), "val": (test_fraction, test_fraction + val_fraction)}
        bounds["train"] = (test_fraction + val_fraction, 1.0)
        wanted = [split for split in SPLITS if bounds[split][1] > bounds[split][0]]
        self._decided()
        undivided = []
        for source in range(max(len(self._ends), 1)):
            kept = [number for number in self._numbers_of(source) if self._split[number] != LEFT_OUT]
            if len(kept) < len(wanted) and len(self._ends) <= 1:
                raise OperatorError(
                    f"cannot divide {len(kept)} document(s) into {', '.join(wanted)}",
                    "set val_fraction = 0 and test_fraction = 0, set max_document_bytes to divide long documents, or"
                    " give a larger source",
                )
            if not self._assign(kept, bounds, wanted):
                undivided.append(source)
        if undivided and len(self._ends) <= 1:
            raise OperatorError(
                f"cannot divide the groups of {len(self)} document(s) into {', '.join(wanted)}",
                'set split_by = "document", set val_fraction = 0 and test_fraction = 0, or give a larger source',
            )
        return undivided

    def _assign(self, kept: Sequence[int], bounds: Bounds, wanted: list[str]) -> bool:
        """Divide documents; False if they have fewer groups than requested splits."""
        counts = dict.fromkeys(range(len(SPLITS)), 0)
        for number in kept:
            at = self._place[number]
            split = "test" if at < bounds["test"][1] else "val" if at < bounds["val"][1] else "train"
            self._split[number] = SPLITS.index(split)
            counts[SPLITS.index(split)] += 1
        empty = [split for split in wanted if not counts[SPLITS.index(split)]]
        if not empty or not kept:
            return bool(kept)
        groups: dict[float, list[int]] = {}
        for number in kept:
            groups.setdefault(self._place[number], []).append(number)
        if len(groups) < len(wanted):
            for number in kept:
                self._split[number] = SPLITS.index("train")
            return False
        for split in empty:
            self._move_nearest(split, *bounds[split], groups)
        return True

    def _move_nearest(self, split: str, low: float, high: float, groups: Mapping[float, list[int]]) -> None:
        in_split = [self._split[numbers[0]] for numbers in groups.values()]
        candidates = [place for place, numbers in groups.items() if in_split.count(self._split[numbers[0]]) > 1]
        nearest = min(candidates, key=lambda place: max(low - place, place - high, 0.0))
        for number in groups[nearest]:
            self._split[number] = SPLITS.index(split)
            self.moved[self._name(number)] = split

    def sizes_of(self, split: str) -> list[int]:
        """The bytes of each source's documents in a split, each once."""
        wanted = SPLITS.index(split)
        return [
            sum(self._sizes[number] for number in self._numbers_of(source) if self._split[number] == wanted)
            for source in range(max(len(self._ends), 1))
        ]

    def mix(self, split: str, targets: Sequence[float]) -> None:
        """Leave out or repeat documents of a split, in the order of their keyed hash, until each source has about its
        target of bytes."""
        for source, target in enumerate(targets):
            mine = [n for n in self._numbers_of(source) if self._split[n] == SPLITS.index(split)]
            size = sum(self._sizes[number] for number in mine)
            if not size:
                continue
            whole = int(target / size + 1e-9)
            rest = target - whole * size
            taken = 0
            for number in sorted(mine, key=self._order.__getitem__):
                more = taken + self._sizes[number] / 2 <= rest or (whole == 0 and taken == 0)
                taken += self._sizes[number] if more else 0
                rest = rest if more else -1.0
                self._times[number] = whole + more
                if not self._times[number]:
                    self._split[number] = LEFT_OUT

    # ---- writing

    def write(
        self, out: Path, report: Callable[[float, float | None, str], None] | None
    ) -> tuple[dict[str, dict[str, Any]], list[dict[str, dict[str, int]]]]:
        """Write the splits' files into `out`: all documents once, then those that are repeated, again.

        Returns:
            Documents, bytes and SHA-256 by split; and for each source its documents and bytes by split.

        Raises:
            OSError: the disk is full.
        """
        self._file.flush()
        digests = [hashlib.sha256() for _ in SPLITS]
        files = [split_file(out, split).open("wb") for split in SPLITS]
        total = sum(times for number, times in enumerate(self._times) if self._split[number] != LEFT_OUT)
        done = 0
        try:
            for time in range(1, max(self._times, default=0) + 1):
                for number, line in self._lines_of(time):
                    split = self._split[number]
                    files[split].write(line)
                    digests[split].update(line)
                    done += 1
                    if report is not None:
                        report(done, total, "documents")
        finally:
            for file in files:
                file.close()
        counts = [self._counts(source) for source in range(max(len(self._ends), 1))]
        splits = {
            split: {
                "documents": sum(one[split]["documents"] for one in counts),
                "bytes": sum(one[split]["bytes"] for one in counts),
                "sha256": digests[number].hexdigest(),
            }
            for number, split in enumerate(SPLITS)
        }
        return splits, counts

    def _lines_of(self, time: int) -> Iterator[tuple[int, bytes]]:
        """The documents that are written at least this often, with their lines."""
        with open_regular(self._path) as lines:
            for number, size in enumerate(self._lines):
                if self._split[number] == LEFT_OUT or self._times[number] < time:
                    lines.seek(size, 1)
                    continue
                line = lines.read(size)
                if time > 1:
                    document = msgspec.json.decode(line, type=Document)
                    line = self._encoder.encode(Document(f"{document.path}@{time}", document.text)) + b"\n"
                yield number, line

    def _counts(self, source: int) -> dict[str, dict[str, int]]:
        found = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
        for number in self._numbers_of(source):
            if (split := self._split[number]) != LEFT_OUT:
                found[SPLITS[split]]["documents"] += self._times[number]
                found[SPLITS[split]]["bytes"] += self._times[number] * self._sizes[number]
        return found

    def _decided(self) -> None:
        """Prepare the decisions once all documents are there."""
        if len(self._split) != len(self):
            self._split = bytearray(len(self))
            self._times = array("H", [1]) * len(self)

    def _numbers_of(self, source: int) -> range:
        if not self._ends:
            return range(len(self))
        return range(self._ends[source], self._ends[source + 1] if source + 1 < len(self._ends) else len(self))

    def _source_of(self, number: int) -> int:
        return max(sum(start <= number for start in self._ends) - 1, 0)

    def _name(self, number: int) -> str:
        self._file.flush()
        with open_regular(self._path) as lines:
            lines.seek(sum(self._lines[:number]))
            return msgspec.json.decode(lines.read(self._lines[number]), type=Document).path
