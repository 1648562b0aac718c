"""One safetensors file of a sharded checkpoint's weights, with the bytes that a save of one process has."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from engines.training.saves.shards import Shards

MODEL = "model/"
"""In the names of a sharded checkpoint: the model's weights; what has another beginning is the training's state."""
WEIGHTS = "model.safetensors"


def weights_of(shards: Shards) -> dict[str, torch.Tensor]:
    """The whole weights of a sharded checkpoint, by their names in the model.

    Raises:
        ShardsError: a shard is damaged.
    """
    return {name.removeprefix(MODEL): shards.read(name) for name in shards.names if name.startswith(MODEL)}


def write_consolidated(checkpoint: Path, folder: Path) -> None:
    """Write the whole weights of a sharded checkpoint into a folder.

    Raises:
        ShardsError: the checkpoint is damaged.
        OSError: the disk is full or fails.
    """
    save_file(weights_of(Shards(checkpoint)), folder / WEIGHTS, metadata={"format": "pt"})
