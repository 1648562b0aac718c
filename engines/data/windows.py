"""Token shards as training examples: windows of equal length, read from the disk on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from engines.data.shards import TokenShard
from engines.forward.label_loss import REAL_TOKENS, counted
from engines.training.loss import WINDOWS_PROTOCOL, Batch, Batches, Example, one_sequence, pad_batch
from recipes.problems import OperatorError


class WindowDataset(Dataset[torch.Tensor]):
    """Consecutive windows of `max_length` tokens; the remainder at the end of the shard is not used.

    Map-style, so that a resume skips indices and does not read the skipped windows.
    """

    def __init__(self, path: Path, split: str, max_length: int) -> None:
        """Open a split.

        Raises:
            OperatorError: the shard does not match tokens.json, or is shorter than one window.
        """
        self._path, self._split, self._length = path, split, max_length
        self._shard: TokenShard | None = TokenShard(path, split)
        self._count = len(self._shard) // max_length
        self.documents = self._shard.entry.documents
        if self._count == 0:
            raise OperatorError(
                f"{path}: the {split} split has {len(self._shard)} tokens, fewer than one window of {max_length}",
                "prepare more text, or lower max_length",
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        """Token ids of one window, int64 [max_length]."""
        if self._shard is None:
            self._shard = TokenShard(self._path, self._split)  # once per loading process
        start = index * self._length
        return torch.from_numpy(self._shard.tokens[start : start + self._length].astype(np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shard": None}


def collate_windows(windows: list[torch.Tensor]) -> dict[str, Any]:
    """A batch without padding and without a mask: int64 [batch, max_length]. The model shifts the labels itself."""
    ids = torch.stack(windows)
    return {"input_ids": ids, "labels": ids, REAL_TOKENS: ids.numel(), **counted(ids)}


class DocumentWindows(WindowDataset):
    """The same windows, each as the pieces of its documents."""

    def pieces(self, index: int) -> list[torch.Tensor]:
        """Token ids of each document's part in a window, int64; together they are the window."""
        window = self[index]
        assert self._shard is not None
        return list(torch.tensor_split(window, cuts_of(self._shard.document_ends, index * self._length, self._length)))

    def __getitems__(self, indices: list[int]) -> list[list[torch.Tensor]]:
        """The pieces of several windows; the data loader calls this where a dataset has it."""
        return [self.pieces(index) for index in indices]


def cuts_of(ends: npt.NDArray[np.int64], start: int, length: int) -> list[int]:
    """Where documents end inside of a window, from its start.

    Args:
        ends: position after each document's end, rising.
        start: position of the window.
        length: of the window.
    """
    first, last = np.searchsorted(ends, [start, start + length], side="right")
    return [int(end) - start for end in ends[first:last] if end < start + length]


def collate_documents(windows: list[list[torch.Tensor]]) -> dict[str, Any]:
    """A batch that is one sequence of all pieces: what `one_sequence` gives for them."""
    return one_sequence([Example(piece.tolist(), piece.tolist()) for pieces in windows for piece in pieces])


def document_batches(shard: TokenShard, max_length: int, batch_size: int, *, max_tokens: int) -> Batches:
    """The windows of `window_batches` with their documents apart; the first token of each piece is not scored.

    Args:
        shard: an open split.
        max_length: tokens per window; the last window may be shorter.
        batch_size: windows per batch; it does not change the loss.
        max_tokens: stop taking windows when this many tokens are scored.
    """
    windows: list[list[tuple[int, int]]] = []
    scored = 0
    for start in range(0, len(shard) - 1, max_length):
        if scored >= max_tokens:
            break
        length = min(max_length, len(shard) - start)
        bounds = [0, *cuts_of(shard.document_ends, start, length), length]
        windows.append([(start + a, start + b) for a, b in pairwise(bounds)])
        scored += sum(b - a - 1 for a, b in windows[-1])

    def walk() -> Iterator[Batch]:
        for at in range(0, len(windows), batch_size):
            rows = [shard.tokens[a:b].tolist() for pieces in windows[at : at + batch_size] for a, b in pieces]
            yield pad_batch([Example(row, row) for row in rows])

    longest = max((b - a for pieces in windows for a, b in pieces), default=0)
    return Batches(walk, scored, f"{WINDOWS_PROTOCOL}(max_length={max_length}, documents apart)", longest=longest)


def verify_shard(shard: TokenShard, on_progress: Callable[[float, float], None]) -> None:
    """Compare a shard's bytes with the SHA-256 in tokens.json.

    Args:
        shard: an open split.
        on_progress: called with bytes read and total bytes; an exception from it ends the reading.

    Raises:
        OperatorError: the SHA-256 differs.
    """
    shard.verify(on_progress)
