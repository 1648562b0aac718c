"""The share of one process in the batches of an epoch: the order is the same for any number of processes.

Micro-batch k of an epoch belongs to process k modulo their number. A step of N processes with A micro-batches each has
the micro-batches of a step of one process with N * A, so the position in the data, the rows behind a step and the
digest of the order are the same facts. Where an epoch's last micro-batches do not divide evenly, the processes that
have none compute a filler: a micro-batch without labels, so that every process takes part in every exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import BatchSampler, Dataset

from engines.forward.label_loss import FILLER, IGNORED, REAL_TOKENS, counted
from engines.world import World

_NOTHING = -1
"""The index that stands for a filler."""


class SharedBatches(BatchSampler):
    """This process's batches of a batch sampler: equally many in each process.

    Args:
        batch_sampler: the batches of all processes; accelerate reads and replaces its sampler.
        world: the processes.
    """

    def __init__(self, batch_sampler: BatchSampler, world: World) -> None:
        self.batch_sampler, self._world = batch_sampler, world
        self.batch_size, self.drop_last = batch_sampler.batch_size, batch_sampler.drop_last

    @property
    def sampler(self) -> Any:
        """The sampler of single examples."""
        return self.batch_sampler.sampler

    @sampler.setter
    def sampler(self, value: Any) -> None:
        self.batch_sampler.sampler = value

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self._world.size)

    def __iter__(self) -> Iterator[list[int]]:
        given = 0
        for number, batch in enumerate(self.batch_sampler):
            if number % self._world.size == self._world.rank:
                given += 1
                yield batch
        if given < len(self):
            yield [_NOTHING]


class _Nothing(list[Any]):
    """The examples of a filler."""


class SharedDataset(Dataset[Any]):
    """A dataset that has an example for the index of a filler, too: its first one, marked."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        if indices == [_NOTHING]:
            return _Nothing(self.__getitems__([0]))
        many = getattr(self._dataset, "__getitems__", None)
        return list(many(indices)) if many else [self._dataset[index] for index in indices]

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def collate_shared(collate: Callable[[list[Any]], dict[str, Any]], examples: list[Any]) -> dict[str, Any]:
    """The batch of these examples; a filler's has no labels, no tokens to count, and the key `FILLER`."""
    batch = collate(examples)
    if not isinstance(examples, _Nothing):
        return batch
    if "labels" in batch:
        labels = batch["labels"].clone().fill_(IGNORED)
        batch = {**batch, "labels": labels, **counted(labels)}
    return {**batch, REAL_TOKENS: 0, FILLER: True}
