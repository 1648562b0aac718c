"""Token shards from a text folder and a tokenizer: one document at a time, so the corpus is never in memory.

SentencePiece encodes, so a literal "<s>" or "<|im_end|>" in a document is ordinary text; the only special token in a
shard is the end of document. One character is not preserved: SentencePiece reads U+2581 as a space (as do transformers
and llama.cpp), so documents with it are counted.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sentencepiece import SentencePieceProcessor

from engines.artifacts.data_folder import TOKENS_JSON
from engines.data.documents import corpus_bytes, read_documents
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


def prepare_tokens(data: Path, tokenizer: Path, out: Path, *, report: Report | None = None) -> dict[str, Any]:
    """Write a tokens folder into `out`.

    Args:
        data: a text folder.
        tokenizer: a folder with tokenizer.model.
        out: an existing empty folder.
        report: called with progress; an exception from it ends the work.

    Returns:
        The totals `tokens`, `documents`, `bytes`, `control_strings` (documents that contain the text of a special
        token), and `space_marks` (documents with U+2581).

    Raises:
        OperatorError: no usable tokenizer.model, or no documents.
    """
    processor = load_processor(tokenizer)
    vocab_size = processor.vocab_size()
    dtype = dtype_for(vocab_size)
    writer = _SplitWriter(processor, dtype, corpus_bytes(data), report)
    splits = {split: writer.write(data, out, split) for split in SPLITS}
    if not sum(entry.documents for entry in splits.values()):
        raise OperatorError(f"{data} has no documents", "prepare the text from another source")
    manifest = TokensManifest(
        format=FORMAT,
        dtype=dtype,
        eos_id=processor.eos_id(),
        vocab_size=vocab_size,
        tokenizer_sha256=file_sha256(tokenizer / "tokenizer.model"),
        splits=splits,
    )
    (out / TOKENS_JSON).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    (out / TOKENIZER).mkdir()
    copy_tokenizer(out / TOKENIZER, tokenizer)
    for split in SPLITS:
        TokenShard(out, split)  # the stage fails here if lengths, dtype or document ends are wrong
    return {
        "tokens": sum(entry.tokens for entry in splits.values()),
        "documents": sum(entry.documents for entry in splits.values()),
        "bytes": writer.text_bytes,
        "control_strings": writer.counts["control_strings"],
        "space_marks": writer.counts["space_marks"],
    }


def load_processor(tokenizer: Path) -> SentencePieceProcessor:
    """The SentencePiece tokenizer of a folder.

    Raises:
        OperatorError: tokenizer.model is missing, cannot be read, or has no end-of-document token.
    """
    file = tokenizer / "tokenizer.model"
    if not file.is_file():
        raise OperatorError(f"{file} does not exist", "give a folder with SentencePiece's tokenizer.model")
    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise OperatorError(f"{file} is not a SentencePiece model", str(error)) from error
    if processor.eos_id() < 0:
        raise OperatorError(f"{file} has no end-of-sequence piece", "train a tokenizer with one, such as </s>")
    return processor


class _SplitWriter:
    def __init__(self, processor: SentencePieceProcessor, dtype: str, total: int, report: Report | None) -> None:
        self._processor = processor
        self._dtype = DTYPES[dtype]
        self._total = total
        self._report = report
        self._done = 0
        self._controls = [processor.id_to_piece(i) for i in range(processor.vocab_size()) if processor.is_control(i)]
        self.text_bytes = 0
        self.counts: Counter[str] = Counter()

    def write(self, data: Path, out: Path, split: str) -> SplitEntry:
        digest = hashlib.sha256()
        ends = array("Q")
        tokens = 0
        with (out / f"{split}.bin").open("wb") as shard:
            for document, line_bytes in read_documents(data, split):
                encoded = self._encode(document.text)
                shard.write(encoded)
                digest.update(encoded)
                tokens += len(encoded) // np.dtype(self._dtype).itemsize
                ends.append(tokens)
                self._done += line_bytes
                if self._report is not None:
                    self._report(self._done, self._total, "bytes")
        (out / f"{split}.idx").write_bytes(np.asarray(ends, dtype="<u8").tobytes())
        return SplitEntry(
            tokens=tokens, documents=len(ends), file=f"{split}.bin", sha256=digest.hexdigest(), index=f"{split}.idx"
        )

    def _encode(self, text: str) -> bytes:
        self.counts["control_strings"] += any(piece in text for piece in self._controls)
        self.counts["space_marks"] += SPACE_MARK in text
        self.text_bytes += len(text.encode())
        ids = self._processor.encode(text, out_type=int)
        ids.append(self._processor.eos_id())
        return np.asarray(ids, dtype=self._dtype).tobytes()
