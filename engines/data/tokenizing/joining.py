"""The shards of a split from its parts: one file, or numbered ones that end with a document."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from engines.data.tokenizing.parts import PartRecord
from engines.data.tokens_manifest import ShardFile, SplitEntry
from engines.files import open_regular, read_regular_bytes

_CHUNK_BYTES = 1 << 20


def join_parts(
    folder: Path, records: Sequence[PartRecord], out: Path, split: str, itemsize: int, shard_tokens: int | None
) -> SplitEntry:
    """Write the shards, the index and the names of a split's documents into `out`.

    Args:
        folder: the folder of the parts.
        records: the records of the split's parts, in order.
        out: the folder of the tokens.
        split: train, val or test.
        itemsize: bytes of a token.
        shard_tokens: tokens after which a document ends a shard; None for one file.

    Raises:
        OSError: the disk is full, or a part cannot be read.
    """
    ends, index = [0], hashlib.sha256()
    since = total = documents = 0
    with (out / f"{split}.idx").open("wb") as idx, (out / f"{split}.names").open("wb") as names:
        for record in records:
            own = np.frombuffer(read_regular_bytes(folder / f"{record.part.name}.idx"), dtype="<u8")
            encoded = (own + np.uint64(total)).astype("<u8")
            idx.write(encoded.tobytes())
            index.update(encoded.tobytes())
            for end in encoded.tolist() if shard_tokens is not None else ():
                if end - since >= shard_tokens:
                    ends.append(end)
                    since = end
            _copy(folder / f"{record.part.name}.names", names)
            total += record.tokens
            documents += record.documents
    if ends[-1] != total or total == 0:
        ends.append(total)
    files = [f"{split}.bin"] if shard_tokens is None else _numbered(split, len(ends) - 1)
    shards = _write_shards(folder, records, out, files, [end * itemsize for end in ends])
    one = shard_tokens is None
    return SplitEntry(
        tokens=total,
        documents=documents,
        file=files[0],
        sha256=shards[0].sha256 if one else hashlib.sha256("".join(s.sha256 for s in shards).encode()).hexdigest(),
        index=f"{split}.idx",
        index_sha256=index.hexdigest(),
        names=f"{split}.names",
        shards=[] if one else [ShardFile(s.file, s.bytes // itemsize, s.sha256) for s in shards],
    )


class _Written:
    def __init__(self, file: str, size: int, sha256: str) -> None:
        self.file, self.bytes, self.sha256 = file, size, sha256


def _numbered(split: str, count: int) -> list[str]:
    return [f"{split}-{number:05}-of-{count:05}.bin" for number in range(count)]


def _write_shards(
    folder: Path, records: Sequence[PartRecord], out: Path, files: list[str], ends: list[int]
) -> list[_Written]:
    """Copy the parts' tokens into files that end at these bytes of the whole."""
    parts = _Joined([folder / f"{record.part.name}.bin" for record in records])
    made = []
    try:
        for number, name in enumerate(files):
            rest = ends[number + 1] - ends[number]
            size, digest = rest, hashlib.sha256()
            with (out / name).open("wb") as shard:
                while rest and (chunk := parts.read(min(rest, _CHUNK_BYTES))):
                    shard.write(chunk)
                    digest.update(chunk)
                    rest -= len(chunk)
            made.append(_Written(name, size, digest.hexdigest()))
    finally:
        parts.close()
    return made


class _Joined:
    """Several files, read as one."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._open: BinaryIO | None = None

    def read(self, size: int) -> bytes:
        while True:
            if self._open is None:
                if not self._files:
                    return b""
                self._open = open_regular(self._files.pop(0))
            if chunk := self._open.read(size):
                return chunk
            self.close()

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _copy(file: Path, target: BinaryIO) -> None:
    with open_regular(file) as source:
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
