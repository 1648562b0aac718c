"""The exchange of facts between processes, with torch: what `engines.world.World` offers where there are several.

Facts are small: numbers, and objects of Python. They use gloo and the processor's memory, also where gradients use
nccl.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK_S = 0.05


def connect(rank: int, size: int, local_rank: int, timeout_s: float) -> None:
    """Join the process group that torchrun's environment describes; nothing the second time.

    A rank sees one GPU from then on, number `local_rank` of those that are visible. Call it before CUDA is used.
    """
    if distributed.is_initialized():
        return
    if torch.version.cuda is not None:
        os.environ[_VISIBLE] = own_device(os.environ.get(_VISIBLE), local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))


def own_device(visible: str | None, local_rank: int) -> str:
    """The one device of a rank, as CUDA_VISIBLE_DEVICES names it; the rank's number where the list has no entry."""
    listed = [part.strip() for part in (visible or "").split(",") if part.strip()]
    return listed[local_rank] if local_rank < len(listed) else str(local_rank)


def reduce_sum(values: Sequence[float]) -> list[float]:
    """The sums of numbers over the processes, in float64; all processes get the same bits."""
    return sum_later(values)()


def sum_later(values: Sequence[float]) -> Callable[[], list[float]]:
    """The same, exchanged while this process works on; the result is called for the sums."""
    summed = torch.tensor(values, dtype=torch.float64)
    work = distributed.all_reduce(summed, async_op=True)
    assert work is not None, "this process belongs to the group"

    def sums() -> list[float]:
        work.wait()
        return [float(value) for value in summed.tolist()]

    return sums


def wait(waiting: Callable[[], None]) -> None:
    """Wait until every process has called this, and call `waiting` meanwhile; what it raises ends the wait."""
    work = distributed.all_reduce(torch.zeros(1), async_op=True)
    assert work is not None, "this process belongs to the group"
    while not work.is_completed():
        waiting()
        time.sleep(_LOOK_S)
    work.wait()


def broadcast_object(value: Any, source: int) -> Any:
    """The object that the process `source` gave."""
    held: list[Any] = [value if distributed.get_rank() == source else None]
    distributed.broadcast_object_list(held, src=source)
    return held[0]


def gather_objects(value: Any) -> list[Any]:
    """The objects of all processes by rank, in every process."""
    held: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(held, value)
    return held
