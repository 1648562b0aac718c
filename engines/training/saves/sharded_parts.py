"""What one process writes of a checkpoint in shards; the first one writes what all have in common, and collects."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from engines.artifacts.sharded import SHARDS, TRAINING
from engines.files import write_durably
from engines.training.saves.divided import group_settings, pieces_of, training_bytes, training_tensors
from engines.training.saves.parts import Copies, finite, random_states, write_settings, write_states
from engines.training.saves.shards import Collected, Piece, collect_shards, write_shard
from engines.world import World

RECEIPTS_S = 1500.0
"""How long the first process waits for the others' shards: less than an exchange, in which they may wait for it."""


class Stop:
    """Why the first process should not wait for the others' shards any longer."""

    def __init__(self) -> None:
        self._reason, self._from_s = "", float("inf")

    def say(self, reason: str, in_s: float = 0.0) -> None:
        """End the wait with this reason, now or after some seconds."""
        self._reason, self._from_s = reason, time.monotonic() + in_s

    def __call__(self) -> str:
        """The reason; empty before there is one."""
        return self._reason if time.monotonic() >= self._from_s else ""


@dataclass(frozen=True)
class ShardedParts:
    """A training at one step, as one process has it.

    Attributes:
        pieces: of weights and optimizer state, by their names in the checkpoint.
        groups: the settings of the optimizer.
        scheduler: its state dict.
        random_states: of this process.
        others: those of the other processes, by rank from 1.
        state: Trainer's own counters.
        world: the processes.
        stop: ends the wait for the others' shards.
    """

    pieces: Mapping[str, Piece]
    groups: list[dict[str, Any]]
    scheduler: Mapping[str, Any]
    random_states: Mapping[str, Any]
    others: tuple[Mapping[str, Any], ...]
    state: Any
    world: World
    stop: Stop
    _collected: list[Collected] = field(default_factory=list)

    def changing(self) -> Iterator[torch.Tensor]:
        """Every tensor that the next step may change."""
        yield from (piece.data for piece in self.pieces.values())

    def copied(self, copies: Copies) -> ShardedParts:
        """The same with copies of them."""
        pieces = {name: dataclasses.replace(one, data=copies.of(one.data)) for name, one in self.pieces.items()}
        return dataclasses.replace(self, pieces=pieces)

    def all_finite(self) -> bool:
        """Whether every value of this process is finite; once the shards are collected, of all processes."""
        return self._collected[0].finite if self._collected else finite(self.changing())

    def write_own(self, folder: Path) -> None:
        """Write the shard of this process.

        Raises:
            OSError: the disk is full or fails.
        """
        write_shard(folder, self.world.rank, self.world.size, self.pieces, finite=self.all_finite())

    def write(self, folder: Path, model: Any) -> Mapping[str, str]:
        """Write, in the first process, its shard and what all have in common, and collect the shards of the others.

        Returns:
            The SHA-256 of each shard, by its path in the folder.

        Raises:
            OSError: the disk is full or fails, here or in another process, or the folder is missing.
        """
        if not folder.is_dir():  # the run was moved since, and libraries would make its folders again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        self.write_own(folder)
        write_settings(model, folder)
        write_durably(folder / SHARDS / TRAINING, training_bytes(self.groups, self.scheduler))
        write_states(folder, self.random_states, self.others, self.state)
        found = collect_shards(folder, self.world.size, why_stop=self.stop, timeout_s=RECEIPTS_S)
        self._collected.append(found)
        return found.sha256


def sharded_parts(trainer: Trainer, others: Sequence[Mapping[str, Any]], world: World, stop: Stop) -> ShardedParts:
    """The parts as they are now: the tensors are the training's own, everything else is a copy. No exchange."""
    return ShardedParts(
        pieces=pieces_of(training_tensors(trainer.model, trainer.optimizer), world.rank, world.size),
        groups=copy.deepcopy(group_settings(trainer.optimizer)),
        scheduler=copy.deepcopy(trainer.lr_scheduler.state_dict()),
        random_states=random_states(trainer),
        others=tuple(others),
        state=copy.deepcopy(trainer.state),
        world=world,
        stop=stop,
    )
