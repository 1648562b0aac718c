"""One part of a text as tokens: files that stay when the process dies, with a record that says they are whole.

A part is a range of bytes of a split's file: the documents whose lines begin in it. Its files are written under
temporary names and renamed, the record last.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from engines.data.documents import Document, split_file
from engines.data.encoders import Encoder
from engines.data.special_pieces import SPACE_MARK
from engines.data.words.word_arrays import Ids
from engines.files import file_sha256, open_regular, read_regular_bytes
from recipes.problems import OperatorError

BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 512
"""Documents are encoded together up to these limits: tokenizer.json is faster on several at once."""
LARGE_BYTES = 2 << 20
"""A document whose line is longer is large: a call into the tokenizer's library takes seconds, and cannot be ended."""
COMPARED_DOCUMENTS = 100
"""The first documents of a split that are decoded again, to see whether the tokenizer preserves text."""
COMPARED_CHARACTERS = 20_000
COUNTS = ("control_strings", "space_marks", "unknown_tokens", "changed", "left_out")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What all parts have in common.

    Attributes:
        data: the text folder.
        tokenizer: the tokenizer's folder.
        encoder: the file in it that decides the ids.
        eos_token: the token that ends a document; None for the tokenizer's own.
        dtype: numpy's name of the numbers in a shard.
        folder: where parts are written.
        key: what the parts belong to: another text, tokenizer or field has another key.
        sources: the names of the text's sources, if it has several.
    """

    data: str
    tokenizer: str
    encoder: str
    eos_token: str | None
    dtype: str
    folder: str
    key: str
    sources: list[str]


class Part(msgspec.Struct, frozen=True):
    """The lines of a split's file that begin in `begin <= place < end`."""

    split: str
    number: int
    begin: int
    end: int

    @property
    def name(self) -> str:
        """The first part of its files' names."""
        return f"{self.split}-{self.number:06}"


class PartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished part: what it is of, its length, the SHA-256 of its tokens, and what was counted."""

    key: str
    part: Part
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    counts: dict[str, int]
    sources: dict[str, tuple[int, int]]


def parts_of(data: Path, split: str, part_bytes: int) -> list[Part]:
    """The parts of a split; none of an empty one.

    Raises:
        OperatorError: the split's file is missing.
    """
    file = split_file(data, split)
    if not file.is_file():
        raise OperatorError(f"{file} does not exist", "give a folder from a prepare stage with output = text")
    size = file.stat().st_size
    begins = range(0, size, part_bytes)
    return [Part(split, number, begin, min(begin + part_bytes, size)) for number, begin in enumerate(begins)]


def finished(folder: Path, key: str, part: Part) -> PartRecord | None:
    """The record of a part if its files are whole and belong to the key; its tokens are read and compared."""
    try:
        record = msgspec.json.decode(read_regular_bytes(folder / f"{part.name}.json"), type=PartRecord)
        if record.key != key or record.part != part or not (folder / f"{part.name}.names").is_file():
            return None
        if (folder / f"{part.name}.idx").stat().st_size != 8 * record.documents:
            return None
        return record if file_sha256(folder / f"{part.name}.bin") == record.sha256 else None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def has_large_document(data: Path, part: Part) -> bool:
    """Whether a line that begins in a part is longer than `LARGE_BYTES`; reads the part."""
    with open_regular(split_file(data, part.split)) as lines:
        place = _to_first_line(lines, part)
        while place < part.end and (line := lines.readline(LARGE_BYTES + 1)):
            if len(line) > LARGE_BYTES:
                return True
            place += len(line)
    return False


def _to_first_line(lines: BinaryIO, part: Part) -> int:
    """Go to the first line that begins in a part, and return its place; at least the part's end without one."""
    if not part.begin:
        return 0
    place = part.begin - 1  # a line that begins before belongs to the part before
    lines.seek(place)
    while place < part.end and (rest := lines.readline(1 << 20)):
        place += len(rest)
        if rest.endswith(b"\n"):
            return place
    return part.end


def unfinished_files(folder: Path, part: Part) -> dict[str, Path]:
    """The files of a part while it is written, by their suffix."""
    return {suffix: folder / f"{part.name}.{suffix}.tmp" for suffix in ("bin", "idx", "names")}


class PartEncoder:
    """Encodes the parts of a job."""

    def __init__(self, job: Job, encoder: Encoder) -> None:
        self._job = job
        self._encoder = encoder
        self._dtype = np.dtype(job.dtype)
        self._is_control = np.zeros(encoder.vocab_size, dtype=np.bool_)
        self._is_control[[number for number in encoder.control_ids if number < encoder.vocab_size]] = True
        self._end = np.array([encoder.eos_id], dtype=self._dtype).tobytes()
        self._decoder = msgspec.json.Decoder(Document)

    def write(self, part: Part, progress: Callable[[int], None]) -> PartRecord:
        """Write a part's files and return its record.

        Args:
            part: the part.
            progress: called with the bytes of lines done since the last call; an exception from it ends the work.

        Raises:
            OperatorError: a line is not a document, or the tokenizer gives an id beyond its vocabulary.
            OSError: the disk is full.
        """
        folder = Path(self._job.folder)
        made = _Made()
        temporary = unfinished_files(folder, part)
        try:
            with temporary["bin"].open("wb") as shard, temporary["names"].open("wb") as names:
                for documents, size in self._batches(part):
                    self._encode(documents, part.number == 0, shard, names, made)
                    progress(size)
            temporary["idx"].write_bytes(np.asarray(made.ends, dtype="<u8").tobytes())
            for suffix, file in temporary.items():
                file.replace(folder / f"{part.name}.{suffix}")
        finally:
            for file in temporary.values():
                file.unlink(missing_ok=True)
        record = PartRecord(
            key=self._job.key,
            part=part,
            tokens=made.ends[-1] if made.ends else 0,
            documents=len(made.ends),
            text_bytes=made.text_bytes,
            sha256=made.digest.hexdigest(),
            counts={name: made.counts[name] for name in COUNTS},
            sources={name: (tokens, documents) for name, (tokens, documents) in made.sources.items()},
        )
        draft = folder / f"{part.name}.json.tmp"
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(folder / f"{part.name}.json")
        return record

    def _batches(self, part: Part) -> Iterator[tuple[list[Document], int]]:
        """The documents of a part, a few at a time, with the bytes of their lines."""
        file = split_file(Path(self._job.data), part.split)
        batch: list[Document] = []
        size = 0
        with open_regular(file) as lines:
            place = _to_first_line(lines, part)
            while place < part.end and (line := lines.readline()):
                try:
                    batch.append(self._decoder.decode(line))
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    where = f"{file}:{_lines_before(file, place) + 1}"
                    raise OperatorError(f"{where}: not a document: {error}", "prepare the text again") from error
                place += len(line)
                size += len(line)
                if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                    yield batch, size
                    batch, size = [], 0
        if batch:
            yield batch, size

    def _encode(self, documents: list[Document], first: bool, shard: BinaryIO, names: BinaryIO, made: _Made) -> None:
        texts = [document.text for document in documents]
        encoded = [text.encode() for text in texts]
        joined = b"\n".join(encoded)
        controls = [piece for piece in self._encoder.controls if piece.encode() in joined]
        ids = self._encoder.arrays(texts)
        has_control = self._checked(documents, ids)
        tokens: list[bytes] = []
        paths: list[str] = []
        for document, text, numbers in zip(documents, encoded, ids, strict=True):
            if has_control and self._is_control[numbers].any():
                made.counts["left_out"] += 1
                continue
            if controls:
                made.counts["control_strings"] += any(piece in document.text for piece in controls)
            made.text_bytes += len(text)
            self._count(document.text, numbers, made, compared=first)
            tokens += numbers.astype(self._dtype).tobytes(), self._end
            paths.append(json.dumps(document.path))
            made.add(len(numbers) + 1, self._source(document.path))
        written = b"".join(tokens)
        made.digest.update(written)
        shard.write(written)
        names.write("".join(f"{path}\n" for path in paths).encode())

    def _checked(self, documents: list[Document], ids: list[Ids]) -> bool:
        """Whether a document has a control token.

        Raises:
            OperatorError: an id is beyond the vocabulary.
        """
        flat = np.concatenate(ids)
        if flat.size and int(flat.max()) >= self._encoder.vocab_size:
            found = next(n for n, numbers in enumerate(ids) if (numbers >= self._encoder.vocab_size).any())
            raise OperatorError(
                f"{self._job.tokenizer} gives the token {int(ids[found].max())} for {documents[found].path}; its"
                f" vocabulary has {self._encoder.vocab_size}",
                "use a tokenizer whose files belong together",
            )
        return bool(self._is_control[flat].any())

    def _source(self, path: str) -> str:
        name = path.partition("/")[0] if self._job.sources else ""
        return name if name in self._job.sources else ""

    def _count(self, text: str, numbers: Ids, made: _Made, *, compared: bool) -> None:
        encoder, counts = self._encoder, made.counts
        reads_it_so = encoder.reads_space_mark and SPACE_MARK in text
        counts["space_marks"] += reads_it_so
        if encoder.unknown_id is not None:
            counts["unknown_tokens"] += int(np.count_nonzero(numbers == encoder.unknown_id))
        if compared and made.compared < COMPARED_DOCUMENTS and len(text) <= COMPARED_CHARACTERS:
            made.compared += 1
            counts["changed"] += not reads_it_so and encoder.decode(numbers.tolist()) != text


class _Made:
    """What a part has so far."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.ends = array("Q")
        self.counts: Counter[str] = Counter()
        self.sources: dict[str, tuple[int, int]] = {}
        self.text_bytes = self.compared = 0

    def add(self, tokens: int, source: str) -> None:
        self.ends.append((self.ends[-1] if self.ends else 0) + tokens)
        if source:
            before = self.sources.get(source, (0, 0))
            self.sources[source] = (before[0] + tokens, before[1] + 1)


def _lines_before(file: Path, place: int) -> int:
    """The number of line ends before a byte."""
    count = 0
    with open_regular(file) as content:
        while place > 0 and (chunk := content.read(min(place, 1 << 20))):
            count += chunk.count(b"\n")
            place -= len(chunk)
    return count
