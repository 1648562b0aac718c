"""Train a lossless SentencePiece BPE model on the train split of a text folder.

SentencePiece gets chunks of documents with their line ends, not single lines. So newlines, tabs and runs of spaces
become ordinary pieces, and `decode(encode(text)) == text` is true for every text, including NULs, byte-order marks,
carriage returns, emoji and unknown scripts (characters without a piece fall back to bytes). The one exception is
U+2581, SentencePiece's own mark for a space: it decodes as a space.

`<|im_start|>` and `<|im_end|>` are control pieces, not user-defined ones: SentencePiece and llama.cpp match
user-defined pieces in plain text, so a document could end a turn of a chat.
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
"""Documents are cut into chunks of at most this many characters; SentencePiece skips longer input than its limit."""
MAX_SENTENCE_BYTES = 4 * CHUNK_CHARACTERS
THREADS = 1
"""Fixed, because the model's bytes depend on it: the same text gives the same file on every machine."""


def chunks(text: str) -> Iterator[str]:
    """Cut a text losslessly into chunks, after line ends where possible."""
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
        documents: number of chosen documents.
    """

    def __init__(self, data: Path, *, max_bytes: int | None, seed: int) -> None:
        """Choose the documents.

        Args:
            data: a text folder.
            max_bytes: most bytes of text; the document at the limit is the last one and is cut to fit.
            seed: key of the order of documents when `max_bytes` limits them.
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
        """The chosen text in chunks, in file order."""
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
        text: the text to train on.
        vocab_size: number of pieces, including special and byte pieces.
        character_coverage: share of characters that get a piece.
        split_digits: give every digit its own piece.
        report: progress of reading the text; the native training reports no progress.

    Raises:
        OperatorError: vocab_size does not fit the text; the message names the largest or smallest value that does.
    """
    model = io.BytesIO()
    sentences = Sentences(text.chunks(report))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
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
        if sentences.error is not None:
            raise sentences.error from None
        raise _operator_error(error, vocab_size, text.bytes) from error
    return model.getvalue()


class Sentences:
    """An iterator that keeps its exception: a native trainer replaces it by one of its own, or takes it for the end."""

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


def too_large(vocab_size: int, size: int, most: int) -> OperatorError:
    """A vocabulary that a text of `size` bytes does not fill; `most` is the largest one that it does."""
    return OperatorError(
        f"vocab_size — too large for {quantities.size(size)} of text; got {vocab_size}; allowed up to {most}",
        f"set vocab_size = {most} or less, or train on more text",
    )


def _operator_error(error: RuntimeError, vocab_size: int, size: int) -> Exception:
    """SentencePiece's vocab_size errors as an OperatorError; other errors unchanged."""
    message = str(error)
    if most := re.search(r"Vocabulary size too high.*value <= (\d+)", message):
        return too_large(vocab_size, size, int(most[1]))
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return OperatorError(
            f"vocab_size — too small for the text's characters; got {vocab_size}; allowed at least {least[1]}",
            f"set vocab_size = {least[1]} or more, or a smaller character_coverage such as 0.9995",
        )
    return error
