"""Train a lossless SentencePiece BPE model on the train split of a text folder.

SentencePiece is given whole pieces of documents with their line ends, never single lines: so newlines, tabs and runs of
spaces become pieces like any others, and `decode(encode(text)) == text` holds for every text: NULs, byte-order marks,
carriage returns, emoji and unknown scripts included (characters without a piece fall back to bytes). The one
character that cannot be kept is U+2581, SentencePiece's own mark for a space: it is read back as a space.

`<|im_start|>` and `<|im_end|>` are control pieces, not user-defined ones: SentencePiece and llama.cpp find user-defined
pieces in plain text, which would let a document end a turn of a chat.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from engines.data.documents import Document, read_documents
from engines.data.special_pieces import BEGIN, END, TURN_END, TURN_START, UNKNOWN
from engines.data.split import keyed_fraction
from engines.data.text import Report
from recipes import quantities
from recipes.problems import OperatorError

CHUNK_CHARACTERS = 16_384
"""Documents are cut into chunks of at most this many characters; SentencePiece skips what is longer than its limit."""
MAX_SENTENCE_BYTES = 4 * CHUNK_CHARACTERS
THREADS = 1
"""Part of the model's bytes, so it is fixed: the same text gives the same file on every machine."""


def chunks(text: str) -> Iterator[str]:
    """Cut a text losslessly into chunks, after line ends where there are any."""
    start = 0
    while len(text) - start > CHUNK_CHARACTERS:
        cut = text.rfind("\n", start, start + CHUNK_CHARACTERS) + 1
        end = cut if cut > start else start + CHUNK_CHARACTERS
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


class TrainingText:
    """The documents that a tokenizer is trained on: all of the train split, or a share chosen by hash.

    Attributes:
        bytes: size of the chosen text in UTF-8.
        documents: how many documents were chosen.
    """

    def __init__(self, data: Path, *, max_bytes: int | None, seed: int) -> None:
        """Choose the documents.

        Args:
            data: a text folder.
            max_bytes: at most this much text; the document at the limit is the last one taken, cut to fit.
            seed: key of the order in which documents are taken when `max_bytes` limits them.
        """
        self._data = data
        self._taken: dict[str, int] = {}
        sizes = {document.path: len(document.text.encode()) for document, _ in read_documents(data, "train")}
        order = sorted(sizes, key=lambda path: (keyed_fraction(seed, path, "tokenizer"), path))
        left = sum(sizes.values()) if max_bytes is None else max_bytes
        for path in order:
            if left <= 0:
                break
            self._taken[path] = min(sizes[path], left)
            left -= self._taken[path]
        self.bytes = sum(self._taken.values())
        self.documents = len(self._taken)
        if not self.bytes:
            raise OperatorError(f"the train split of {data} is empty", "prepare the text from a larger source")

    def chunks(self, report: Report | None = None) -> Iterator[str]:
        """The chosen text in chunks, in the order of the split's file."""
        done = 0
        for document, _ in read_documents(self._data, "train"):
            if document.path in self._taken:
                yield from chunks(self._cut(document))
                done += self._taken[document.path]
                if report is not None:
                    report(done, self.bytes, "bytes")

    def _cut(self, document: Document) -> str:
        return document.text.encode()[: self._taken[document.path]].decode("utf-8", "ignore")


def train_model(
    text: TrainingText,
    *,
    vocab_size: int,
    character_coverage: float = 1.0,
    split_digits: bool = True,
    report: Report | None = None,
) -> bytes:
    """The bytes of tokenizer.model; the same arguments give the same bytes.

    Args:
        text: what to train on.
        vocab_size: number of pieces, special and byte pieces included.
        character_coverage: share of characters with pieces of their own.
        split_digits: give every digit its own piece.
        report: progress of handing over the text; the training itself is native and silent.

    Raises:
        OperatorError: vocab_size does not fit the text; the message names the largest or smallest that does.
    """
    model = io.BytesIO()
    handed = _Handed(text.chunks(report))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=handed,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            split_digits=split_digits,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            max_sentence_length=MAX_SENTENCE_BYTES,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            unk_piece=UNKNOWN,
            bos_piece=BEGIN,
            eos_piece=END,
            control_symbols=[TURN_START, TURN_END],
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if handed.error is not None:
            raise handed.error from None
        raise _in_words(error, vocab_size, text.bytes) from error
    return model.getvalue()


class _Handed:
    """An iterator that remembers what it raised: SentencePiece turns every exception into a RuntimeError."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._texts)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise


def _in_words(error: RuntimeError, vocab_size: int, size: int) -> Exception:
    """SentencePiece's exception as an operator's error; any other is given back as it is."""
    said = str(error)
    if most := re.search(r"Vocabulary size too high.*value <= (\d+)", said):
        return OperatorError(
            f"vocab_size — {vocab_size} is too large for {quantities.size(size)} of text; allowed up to {int(most[1])}",
            f"set vocab_size = {most[1]} or less, or train on more text",
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", said):
        return OperatorError(
            f"vocab_size — {vocab_size} is too small for the characters of the text; allowed from {int(least[1])}",
            f"set vocab_size = {least[1]} or more, or a smaller character_coverage such as 0.9995",
        )
    return error
