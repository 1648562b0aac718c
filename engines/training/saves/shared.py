"""The checkpoints of several processes: the first one writes them, and every one learns the outcome.

All processes call the same operations in the same order. With one process these are the writer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from engines.artifacts.checkpoints import Checkpoint
from engines.training.progress import Counters
from engines.training.saves.parts import random_states, take_part
from engines.world import World


class SharedWriter:
    """The writer of all processes of an attempt.

    Args:
        writer: the `CheckpointWriter` of this process, of which the first one's is used.
        world: the processes.
    """

    def __init__(self, writer: Any, world: World) -> None:
        self._writer, self._world = writer, world
        self._last_step: int | None = None

    @property
    def last_step(self) -> int | None:
        """The step of the newest committed checkpoint; after `finish`, the same in all processes."""
        own: int | None = self._writer.last_step
        return own if self._world.is_first else self._last_step

    def commit(
        self,
        trainer: Trainer,
        counters: Counters,
        eval_loss: float | None,
        plan: Mapping[str, Any] | None = None,
        *,
        evaluation_follows: bool = False,
        wait: bool = True,
    ) -> bool:
        """As `CheckpointWriter.commit`, of what all processes have."""
        self.finish()
        is_new = self.last_step != int(trainer.state.global_step)
        others: list[dict[str, Any]] = []
        if is_new and self._world.size > 1:
            others = self._world.gather_objects(random_states(trainer))[1:]
        saved = False
        if self._world.is_first:
            saved = self._writer.commit(
                trainer, counters, eval_loss, plan, evaluation_follows=evaluation_follows, wait=wait, others=others
            )
        elif is_new:
            take_part(trainer)
        return self._world.broadcast_object(saved)

    def finish(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            Exception: a bug in that save.
        """
        self._writer.finish()
        self._last_step = self._world.broadcast_object(self._writer.last_step)

    def end(self) -> None:
        """The same when an error ends the attempt: in this process alone, because others may not be there any more."""
        self._writer.finish()

    def check(self) -> None:
        """Raise the bug that has ended a save since the last call, if there is one; waits for nothing."""
        self._writer.check()

    def best(self) -> Checkpoint | None:
        """The best healthy checkpoint of the lineage."""
        found: Checkpoint | None = self._world.decided(self._writer.best)
        return found
