"""Token shards from a text folder and a tokenizer: a few documents at a time, so the corpus is never in memory.

A literal "<s>" or "<|im_end|>" in a document is ordinary text; the only special token in a shard is the document's end.
What a tokenizer does not preserve is counted: SentencePiece reads U+2581 as a space (as do transformers and llama.cpp),
some vocabularies cannot spell every character, and some tokenizers normalize text.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from engines.artifacts.data_folder import TOKENS_JSON
from engines.data.documents import corpus_bytes, read_documents
from engines.data.encoders import Encoder, load_encoder
from engines.data.shards import (
    DTYPES,
    FORMAT,
    TOKENIZER,
    SplitEntry,
    TokenShard,
    TokensManifest,
    dtype_for,
)
from engines.data.special_pieces import SPACE_MARK
from engines.data.split import SPLITS
from engines.data.text import Report
from engines.data.tokenizer_files import copy_tokenizer
from engines.files import file_sha256
from recipes.problems import OperatorError

BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 512
"""Documents are encoded together up to these limits: tokenizer.json is faster on several at once."""
COMPARED_DOCUMENTS = 100
"""The first documents that are decoded again, to see whether the tokenizer preserves text."""
COMPARED_CHARACTERS = 20_000


def prepare_tokens(
    data: Path,
    tokenizer: Path,
    out: Path,
    *,
    eos_token: str | None = None,
    report: Report | None = None,
    warn: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Write a tokens folder into `out`.

    Args:
        data: a text folder.
        tokenizer: a folder with tokenizer.json or tokenizer.model.
        out: an existing empty folder.
        eos_token: the token that ends each document; by default, the tokenizer's.
        report: called with progress; an exception from it ends the work.
        warn: takes what the operator should know about the tokenizer.

    Returns:
        The totals `tokens`, `documents`, `bytes`, `control_strings` (documents that contain the text of a special
        token), `space_marks` (documents with U+2581 that is read as a space), `unknown_tokens` (tokens of texts that
        the vocabulary cannot spell), `changed` (of the first documents, those that their tokens do not decode to) and
        `left_out` (documents whose text the tokenizer reads as control tokens).

    Raises:
        OperatorError: no usable tokenizer, or no documents.
    """
    encoder, warnings = load_encoder(tokenizer, eos_token)
    for warning in warnings:
        warn(warning)
    dtype = dtype_for(encoder.vocab_size)
    writer = _SplitWriter(encoder, dtype, corpus_bytes(data), report)
    splits = {split: writer.write(data, out, split) for split in SPLITS}
    if not sum(entry.documents for entry in splits.values()):
        raise OperatorError(f"{data} has no documents", "prepare the text from another source")
    manifest = TokensManifest(
        format=FORMAT,
        dtype=dtype,
        eos_id=encoder.eos_id,
        vocab_size=encoder.vocab_size,
        tokenizer_file=encoder.file,
        tokenizer_sha256=file_sha256(tokenizer / encoder.file),
        splits=splits,
    )
    (out / TOKENS_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    (out / TOKENIZER).mkdir()
    copy_tokenizer(out / TOKENIZER, tokenizer)
    for split in SPLITS:
        TokenShard(out, split)  # the stage fails here if lengths, dtype or document ends are wrong
    counts = writer.counts
    return {
        "tokens": sum(entry.tokens for entry in splits.values()),
        "documents": sum(entry.documents for entry in splits.values()),
        "bytes": writer.text_bytes,
        **{name: counts[name] for name in ("control_strings", "space_marks", "unknown_tokens", "changed", "left_out")},
    }


class _SplitWriter:
    def __init__(self, encoder: Encoder, dtype: str, total: int, report: Report | None) -> None:
        self._encoder = encoder
        self._dtype = DTYPES[dtype]
        self._total = total
        self._report = report
        self._done = 0
        self._compared = 0
        self._controls = np.array(sorted(encoder.control_ids), dtype=np.int64)
        self.text_bytes = 0
        self.counts: Counter[str] = Counter()

    def write(self, data: Path, out: Path, split: str) -> SplitEntry:
        digest = hashlib.sha256()
        ends = array("Q")
        with (out / f"{split}.bin").open("wb") as shard:
            batch: list[str] = []
            size = 0
            for document, line_bytes in read_documents(data, split):
                batch.append(document.text)
                size += line_bytes
                if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
                    self._write(batch, size, shard, digest, ends)
                    batch, size = [], 0
            self._write(batch, size, shard, digest, ends)
        (out / f"{split}.idx").write_bytes(np.asarray(ends, dtype="<u8").tobytes())
        return SplitEntry(
            tokens=ends[-1] if ends else 0,
            documents=len(ends),
            file=f"{split}.bin",
            sha256=digest.hexdigest(),
            index=f"{split}.idx",
        )

    def _write(self, texts: list[str], size: int, shard: BinaryIO, digest: Any, ends: array[int]) -> None:
        """Append the documents of a batch, whose lines have `size` bytes in the text folder."""
        for text, ids in zip(texts, self._encoder.encode(texts) if texts else [], strict=True):
            numbers = np.asarray(ids, dtype=np.int64)
            if np.isin(numbers, self._controls).any():
                self.counts["left_out"] += 1
                continue
            self._count(text, ids, numbers)
            encoded = np.append(numbers, self._encoder.eos_id).astype(self._dtype).tobytes()
            shard.write(encoded)
            digest.update(encoded)
            ends.append((ends[-1] if ends else 0) + len(ids) + 1)
        self._done += size
        if self._report is not None and size:
            self._report(self._done, self._total, "bytes")

    def _count(self, text: str, ids: list[int], numbers: np.ndarray[Any, Any]) -> None:
        self.counts["control_strings"] += any(piece in text for piece in self._encoder.controls)
        self.counts["space_marks"] += self._encoder.reads_space_mark and SPACE_MARK in text
        if self._encoder.unknown_id is not None:
            self.counts["unknown_tokens"] += int((numbers == self._encoder.unknown_id).sum())
        if self._compared < COMPARED_DOCUMENTS and len(text) <= COMPARED_CHARACTERS:
            self._compared += 1
            reads_it_so = self._encoder.reads_space_mark and SPACE_MARK in text
            self.counts["changed"] += not reads_it_so and self._encoder.decode(ids) != text
        self.text_bytes += len(text.encode())
