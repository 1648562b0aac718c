"""Token shards as training examples: windows of equal length, read from the disk on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from engines.data.shards import TokenShard
from engines.forward.label_loss import REAL_TOKENS, counted
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


def verify_shard(shard: TokenShard, on_progress: Callable[[float, float], None]) -> None:
    """Compare a shard's bytes with the SHA-256 in tokens.json.

    Args:
        shard: an open split.
        on_progress: called with bytes read and total bytes; an exception from it ends the reading.

    Raises:
        OperatorError: the SHA-256 differs.
    """
    shard.verify(on_progress)
