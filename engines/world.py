"""The processes that train together: their number, this one's rank, and the exchange of facts between them.

torchrun starts the processes and says in the environment which is which. Facts are small: numbers, and objects of
Python. They use gloo and the processor's memory, also where gradients use nccl. A training of one process has no
process group, and every exchange returns at once.

accelerate must not find torchrun's variables: it would divide batches and wrap the model by its own rules, and on a
processor it trains with DDP where FSDP was requested. So `connect` removes them after it has used them, and the
libraries see one process on one device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

TIMEOUT_S = 1800.0
"""How long a process waits for the others in an exchange before it fails. What one process does alone, such as a save,
must take less."""
_RANK, _SIZE, _LOCAL = "RANK", "WORLD_SIZE", "LOCAL_RANK"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HIDDEN = (_RANK, _SIZE, _LOCAL, "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "GROUP_WORLD_SIZE")

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of one attempt.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its host, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the shared facts: progress, metrics, checkpoints, results."""
        return self.rank == 0

    def connect(self, timeout_s: float = TIMEOUT_S) -> None:
        """Join the process group that torchrun's environment describes, and hide that environment from libraries.

        A rank sees one GPU from then on, number `local_rank` of those that are visible. Call it before CUDA is used. It
        does nothing with one process, and nothing the second time.
        """
        if self.size == 1:
            return
        import torch
        from torch import distributed

        if distributed.is_initialized():
            return
        visible = _own_device(os.environ.get(_VISIBLE), self.local_rank)
        if torch.version.cuda is not None:
            os.environ[_VISIBLE] = visible
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, rank=self.rank, world_size=self.size, timeout=timedelta(seconds=timeout_s)
        )
        for name in _HIDDEN:
            os.environ.pop(name, None)

    def reduce_sum(self, values: Iterable[float]) -> list[float]:
        """The sums of numbers over the processes, in float64; all processes get the same bits."""
        given = list(values)
        if self.size == 1 or not given:
            return given
        import torch
        from torch import distributed

        summed = torch.tensor(given, dtype=torch.float64)
        distributed.all_reduce(summed)
        return [float(value) for value in summed.tolist()]

    def any(self, fact: bool) -> bool:
        """Whether the fact is true in at least one process."""
        return fact if self.size == 1 else self.reduce_sum([float(fact)])[0] > 0

    def all_agree(self, fact: bool) -> bool:
        """Whether the fact is true in every process."""
        return fact if self.size == 1 else self.reduce_sum([float(fact)])[0] == self.size

    def broadcast_object(self, value: Value, *, source: int = 0) -> Value:
        """The object that the process `source` gave; the others' own is not used."""
        if self.size == 1:
            return value
        from torch import distributed

        held: list[Any] = [value if self.rank == source else None]
        distributed.broadcast_object_list(held, src=source)
        found: Value = held[0]
        return found

    def decided(self, decide: Callable[[], Value]) -> Value:
        """What the first process decides; the others do not compute it."""
        return self.broadcast_object(decide() if self.is_first else None)  # type: ignore[return-value]

    def gather_objects(self, value: Value) -> list[Value]:
        """The objects of all processes by rank, in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        held: list[Any] = [None] * self.size
        distributed.all_gather_object(held, value)
        return held

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.reduce_sum([0.0])

    def share(self, things: Sequence[Value]) -> Sequence[Value]:
        """This process's share: every `size`-th thing from `rank` on."""
        return things if self.size == 1 else things[self.rank :: self.size]


def _own_device(visible: str | None, local_rank: int) -> str:
    """The one device of a rank, as CUDA_VISIBLE_DEVICES names it; the rank's number where the list has no entry."""
    listed = [part.strip() for part in (visible or "").split(",") if part.strip()]
    return listed[local_rank] if local_rank < len(listed) else str(local_rank)


@cache
def world() -> World:
    """The world of this process, as torchrun's environment describes it when this is first called."""
    size = _number(_SIZE, 1)
    return World() if size <= 1 else World(_number(_RANK, 0), size, _number(_LOCAL, 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
