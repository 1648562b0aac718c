"""Documents on the disk until their split is decided: in memory are four numbers and a hash of each."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping
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
"""The split of a document that `max_bytes` leaves out."""
_DIGEST_BYTES = 16


@dataclass
class _Mark:
    """A place to return to when a file turns out to be no text."""

    documents: int
    position: int
    digests: list[bytes] = field(default_factory=list)


class DocumentSpool:
    """The documents of a source in their order, without duplicates.

    Attributes:
        duplicates: documents with the text of an earlier one.
        moved: documents that were moved to fill a split, by name.
    """

    def __init__(self, file: Path, seed: int, *, ordered: bool = True) -> None:
        """Begin an empty spool.

        Args:
            file: where the documents are kept; it is removed at the end.
            seed: key of the split and of the order.
            ordered: whether `limit` may get a limit, which needs a second number of each document.
        """
        self._ordered = ordered
        self._path = file
        self._file = file.open("wb")
        self._encoder = msgspec.json.Encoder()
        self._seed = seed
        self._seen: set[bytes] = set()
        self._place, self._order = array("d"), array("d")
        self._sizes, self._lines = array("Q"), array("Q")
        self._mark: _Mark | None = None
        self._split = bytearray()
        self.duplicates = 0
        self.moved: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the spool's file."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all documents."""
        self._mark = _Mark(0, 0, list(self._seen))
        self.undo()
        self._mark = None
        self.duplicates = 0

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def bytes(self) -> int:
        """Size of all texts in UTF-8."""
        return sum(self._sizes)

    def longest(self, start: int) -> int:
        """Bytes of the longest text of the documents from a number on; 0 without any."""
        return max(self._sizes[start:], default=0)

    def add(self, name: str, text: str) -> None:
        """Append a document, unless an earlier one has the same text."""
        encoded = text.encode()
        digest = blake2b(encoded, digest_size=_DIGEST_BYTES).digest()
        if digest in self._seen:
            self.duplicates += 1
            return
        self._seen.add(digest)
        if self._mark is not None:
            self._mark.digests.append(digest)
        line = self._encoder.encode(Document(name, text)) + b"\n"
        self._file.write(line)
        self._place.append(keyed_fraction(self._seed, name))
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
        self._seen.difference_update(self._mark.digests)
        self._file.seek(self._mark.position)
        self._file.truncate()

    def end(self) -> None:
        """The documents since `begin` are kept."""
        self._mark = None

    def limit(self, max_bytes: int | None) -> int:
        """Leave out all documents, in the order of their keyed hash, from the first that exceeds `max_bytes` on.

        At least one stays. Returns the number of those left out.
        """
        self._split = bytearray(len(self))
        if max_bytes is None:
            return 0
        total, full = 0, False
        for number in sorted(range(len(self)), key=self._order.__getitem__):
            full = full or (total > 0 and total + self._sizes[number] > max_bytes)
            if full:
                self._split[number] = LEFT_OUT
            total += self._sizes[number]
        return self._split.count(LEFT_OUT)

    def assign(self, val_fraction: float, test_fraction: float) -> None:
        """Give every document a split by the keyed hash of its name, as `assign_splits` does.

        Raises:
            OperatorError: fewer documents than requested splits.
        """
        bounds = {"test": (0.0, test_fraction), "val": (test_fraction, test_fraction + val_fraction)}
        bounds["train"] = (test_fraction + val_fraction, 1.0)
        wanted = [split for split in SPLITS if bounds[split][1] > bounds[split][0]]
        kept = [number for number in range(len(self)) if self._split[number] != LEFT_OUT]
        if len(kept) < len(wanted):
            raise OperatorError(
                f"cannot divide {len(kept)} document(s) into {', '.join(wanted)}",
                "set val_fraction = 0 and test_fraction = 0, set max_document_bytes to divide long documents, or give a"
                " larger source",
            )
        for number in kept:
            at = self._place[number]
            split = "test" if at < bounds["test"][1] else "val" if at < bounds["val"][1] else "train"
            self._split[number] = SPLITS.index(split)
        for split in wanted:
            if SPLITS.index(split) not in self._split:
                self._move_nearest(split, *bounds[split], kept)

    def _move_nearest(self, split: str, low: float, high: float, kept: list[int]) -> None:
        sizes = [self._split.count(number) for number in range(len(SPLITS))]
        candidates = [number for number in kept if sizes[self._split[number]] > 1]
        nearest = min(candidates, key=lambda number: max(low - self._place[number], self._place[number] - high, 0.0))
        self._split[nearest] = SPLITS.index(split)
        self.moved[self._name(nearest)] = split

    def _name(self, number: int) -> str:
        self._file.flush()
        with open_regular(self._path) as lines:
            lines.seek(sum(self._lines[:number]))
            return msgspec.json.decode(lines.read(self._lines[number]), type=Document).path

    def write(
        self, out: Path, report: Callable[[float, float | None, str], None] | None
    ) -> Mapping[str, dict[str, Any]]:
        """Write the splits' files into `out`; returns documents, bytes and SHA-256 by split."""
        self._file.flush()
        digests = [hashlib.sha256() for _ in SPLITS]
        files = [split_file(out, split).open("wb") for split in SPLITS]
        done, total = 0, len(self) - self._split.count(LEFT_OUT)
        try:
            with open_regular(self._path) as lines:
                for number in range(len(self)):
                    line = lines.read(self._lines[number])
                    if (split := self._split[number]) != LEFT_OUT:
                        files[split].write(line)
                        digests[split].update(line)
                        done += 1
                        if report is not None:
                            report(done, total, "documents")
        finally:
            for file in files:
                file.close()
        return {split: self._counts(number, digests[number].hexdigest()) for number, split in enumerate(SPLITS)}

    def _counts(self, split: int, sha256: str) -> dict[str, Any]:
        sizes = [size for number, size in enumerate(self._sizes) if self._split[number] == split]
        return {"documents": len(sizes), "bytes": sum(sizes), "sha256": sha256}
