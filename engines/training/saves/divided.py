"""The pieces that one process has of a training's tensors, by torch's own placement, and tensors filled from shards.

Weights that FSDP2 divides are DTensors: each process has a box of them. What every process has whole (DDP, scalars,
buffers) is written by one of them, so that the bytes are spread evenly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from engines.training.saves.shards import Box, Piece, Shards


def box_of(tensor: torch.Tensor) -> Box:
    """Offset and shape of what this process has of a tensor."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.dim(), tuple(tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tuple(shape)


def pieces_of(tensors: Mapping[str, torch.Tensor], rank: int, size: int) -> dict[str, Piece]:
    """What this process writes of tensors that all processes have, in the same order.

    Args:
        tensors: by name; a name whose tensor shares its memory with an earlier one (a tied weight) is left out.
        rank: of this process.
        size: number of processes.
    """
    found: dict[str, Piece] = {}
    load = [0] * size
    known: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
        memory = local.data_ptr(), tuple(tensor.shape)
        if local.numel() and memory in known:
            continue
        known.add(memory)
        if isinstance(tensor, DTensor) and any(placement.is_shard() for placement in tensor.placements):
            found[name] = Piece(local, box_of(tensor)[0], tuple(tensor.shape))
            continue
        owner = load.index(min(load))
        load[owner] += tensor.numel() * tensor.element_size()
        if owner == rank:
            found[name] = Piece(local, (0,) * tensor.dim(), tuple(tensor.shape))
    return found


def fill(tensors: Mapping[str, torch.Tensor], shards: Shards) -> list[str]:
    """Fill the tensors of this process from a checkpoint of any number of processes; returns the names that it lacks.

    Raises:
        ShardsError: a shard is damaged.
    """
    missing = []
    present = set(shards.names)
    for name, tensor in tensors.items():
        if name not in present:
            missing.append(name)
            continue
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        with torch.no_grad():
            local.copy_(shards.read(name, box_of(tensor)))
    return missing
