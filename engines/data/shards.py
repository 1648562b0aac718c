"""Open token shards: raw little-endian integers, one file per split, described by tokens.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from engines.artifacts.data_folder import TOKENS_JSON
from engines.data.tokens_manifest import DTYPES, TOKENIZER, check_size, file_inside, read_tokens_manifest
from engines.files import file_sha256
from recipes.problems import OperatorError

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
_COMPARED_TOKENS = 1 << 22
"""Tokens whose ids are compared with the vocabulary at a time."""


class JoinedTokens:
    """The tokens of several files as one sequence, read from the disk on access.

    Attributes:
        shape: (tokens,).
        dtype: of a token.
    """

    def __init__(self, files: Sequence[Tokens]) -> None:
        self._files = files
        self._ends = np.cumsum([len(file) for file in files], dtype=np.int64)
        self.shape = (int(self._ends[-1]),)
        self.dtype = files[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: slice) -> Tokens:
        """The tokens of a range; its step is 1."""
        begin, end, _ = place.indices(len(self))
        parts: list[Tokens] = []
        first = int(np.searchsorted(self._ends, begin, side="right"))
        for number in range(first, len(self._files)):
            start = int(self._ends[number]) - len(self._files[number])
            if start >= end:
                break
            parts.append(self._files[number][max(begin - start, 0) : end - start])
        if not parts:
            return self._files[0][:0]
        found: Any = np.concatenate(parts)
        return cast("Tokens", found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All tokens as one array."""
        return self[:] if dtype is None else self[:].astype(dtype)

    def tolist(self) -> list[int]:
        """All tokens."""
        found: list[int] = self[:].tolist()
        return found


def is_tokens_folder(data: Path) -> bool:
    """Whether a data folder contains token shards; otherwise it contains rows."""
    return (data / TOKENS_JSON).is_file()


class TokenShard:
    """One split, memory-mapped: `tokens` is read from the disk on access.

    Attributes:
        tokens: all documents in sequence, each ended by `eos_id`; shape [tokens].
        document_ends: position after each document's end; shape [documents], int64.
        manifest: the content of tokens.json.
        split: train, val or test.
    """

    def __init__(self, path: Path, split: str, *, verify: bool = False) -> None:
        """Open a split and refuse it when it does not match tokens.json.

        Args:
            path: a tokens folder.
            split: train, val or test.
            verify: also compare the SHA-256 of the file, which reads all bytes.

        Raises:
            OperatorError: the split is missing, or its length or SHA-256 differs.
        """
        self.path = path
        self.split = split
        self.manifest = read_tokens_manifest(path)
        if split not in self.manifest.splits:
            have = ", ".join(self.manifest.splits) or "none"
            raise OperatorError(f"{path} has no {split} split", f"choose one of its splits: {have}")
        self.entry = self.manifest.splits[split]
        files = self.entry.files()
        mapped = [_map(file_inside(path, one.file), DTYPES[self.manifest.dtype], one.tokens) for one in files]
        self.tokens: Tokens | JoinedTokens = mapped[0] if len(mapped) == 1 else JoinedTokens(mapped)
        index = file_inside(path, self.entry.index)
        self.document_ends: npt.NDArray[np.int64] = _map(index, "<u8", self.entry.documents).astype(np.int64)
        last = int(self.document_ends[-1]) if self.entry.documents else 0
        if last != self.entry.tokens:
            raise OperatorError(
                f"the last document end in {index} is {last}, and the split has {self.entry.tokens} tokens",
                "prepare the tokens again",
            )
        wrong = np.flatnonzero(self.document_ends <= np.concatenate([[0], self.document_ends[:-1]]))
        if wrong.size:
            message = f"{index}: document {int(wrong[0]) + 1} does not end after the one before it"
            raise OperatorError(message, "prepare the tokens again")
        if verify:
            self.verify(lambda _done, _total: None)

    def verify(self, on_progress: Callable[[float, float], None]) -> None:
        """Compare the bytes of the split's files with the SHA-256 in tokens.json, and its ids with the vocabulary.

        Args:
            on_progress: called with bytes read and total bytes; an exception from it ends the reading.

        Raises:
            OperatorError: a SHA-256 differs, or a token is beyond the vocabulary.
        """
        wanted = [(file_inside(self.path, one.file), one.sha256) for one in self.entry.files()]
        if self.entry.index_sha256:
            wanted.append((file_inside(self.path, self.entry.index), self.entry.index_sha256))
        total, before = sum(file.stat().st_size for file, _ in wanted), 0
        for file, sha256 in wanted:
            base = before

            def read(done: float, base: int = base) -> None:
                on_progress(base + done, total)

            if file_sha256(file, read) != sha256:
                raise OperatorError(
                    f"{file} has changed: its SHA-256 differs from {TOKENS_JSON}", "prepare the tokens again"
                )
            before += file.stat().st_size
        self._compare_ids()

    def _compare_ids(self) -> None:
        """Refuse a token that no row of an embedding belongs to: a GPU would report it as a failed assertion, steps
        later."""
        for begin in range(0, len(self), _COMPARED_TOKENS):
            part = self.tokens[begin : begin + _COMPARED_TOKENS]
            if int(part.max()) >= self.vocab_size:
                at = begin + int(np.argmax(part >= self.vocab_size))
                raise OperatorError(
                    f"token {at} of the {self.split} split in {self.path} is {int(self.tokens[at : at + 1][0])};"
                    f" {TOKENS_JSON} states a vocabulary of {self.vocab_size}",
                    "the shard belongs to another tokenizer; prepare the tokens again",
                )

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def document_at(self, token: int) -> int:
        """The number of the document that a token belongs to."""
        return int(np.searchsorted(self.document_ends, token, side="right"))

    @property
    def eos_id(self) -> int:
        """The token that ends every document."""
        return self.manifest.eos_id

    @property
    def vocab_size(self) -> int:
        """Number of ids; every token is below it."""
        return self.manifest.vocab_size

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that encoded these tokens."""
        return self.path / TOKENIZER


def _map(file: Path, dtype: str, count: int) -> Any:
    kind = np.dtype(dtype)
    check_size(file, count, kind.itemsize)
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=kind)
    return np.memmap(file, dtype=kind, mode="r", shape=(count,))
