"""The processes that train together: their number, this one's rank, and the exchange of facts between them.

torchrun starts the processes and says in the environment which is which. A training of one process has no process
group, and every exchange returns at once.

accelerate must not find torchrun's variables: it would divide batches and wrap the model by its own rules, and on a
processor it trains with DDP where FSDP was requested. So `connect` removes them after it has used them, and the
libraries see one process on one device.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

TIMEOUT_S = 1800.0
"""How long a process waits for the others in an exchange before it fails. What one process does alone, such as a save,
must take less."""
_RANK, _SIZE, _LOCAL = "RANK", "WORLD_SIZE", "LOCAL_RANK"
_HIDDEN = (_RANK, _SIZE, _LOCAL, "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "GROUP_WORLD_SIZE")
_EXCHANGE = "engines.ranks.exchange"
"""The module that exchanges; it needs torch, which a training of one process imports later."""

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

        Call it before CUDA is used: a rank sees one GPU from then on. It does nothing with one process.
        """
        if self.size > 1:
            _exchange().connect(self.rank, self.size, self.local_rank, timeout_s)
            for name in _HIDDEN:
                os.environ.pop(name, None)

    def reduce_sum(self, values: Iterable[float]) -> list[float]:
        """The sums of numbers over the processes, in float64; all processes get the same bits."""
        given = list(values)
        return given if self.size == 1 or not given else list(_exchange().reduce_sum(given))

    def sum_later(self, values: Iterable[float]) -> Callable[[], list[float]]:
        """`reduce_sum` that is exchanged meanwhile: call the result for the sums, in every process."""
        given = list(values)
        if self.size == 1 or not given:
            return lambda: given
        found: Callable[[], list[float]] = _exchange().sum_later(given)
        return found

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
        found: Value = _exchange().broadcast_object(value, source)
        return found

    def decided(self, decide: Callable[[], Value]) -> Value:
        """What the first process decides; the others do not compute it."""
        found: Any = self.broadcast_object(decide() if self.is_first else None)
        result: Value = found
        return result

    def gather_objects(self, value: Value) -> list[Value]:
        """The objects of all processes by rank, in every process."""
        return [value] if self.size == 1 else list(_exchange().gather_objects(value))

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.reduce_sum([0.0])

    def wait(self, waiting: Callable[[], None]) -> None:
        """Wait until every process is here, and call `waiting` meanwhile; what it raises ends the wait."""
        if self.size > 1:
            _exchange().wait(waiting)

    def share(self, things: Sequence[Value]) -> Sequence[Value]:
        """This process's share: every `size`-th thing from `rank` on."""
        return things if self.size == 1 else things[self.rank :: self.size]


ALONE = World()
"""One process."""


def _exchange() -> Any:
    return importlib.import_module(_EXCHANGE)


@cache
def world() -> World:
    """The world of this process, as torchrun's environment describes it when this is first called."""
    size = _number(_SIZE, 1)
    return ALONE if size <= 1 else World(_number(_RANK, 0), size, _number(_LOCAL, 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
