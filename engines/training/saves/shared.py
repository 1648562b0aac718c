"""The checkpoints of several processes: the first one commits them, and every one learns the outcome.

All processes call the same operations in the same order. With one process these are the writer's own. Where the model
is divided over the processes, each writes its own part, beside the training; nothing comes together in the first one.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer

from engines.artifacts.checkpoints import Checkpoint
from engines.ranks.placement import is_sharded
from engines.training.faults import Faults
from engines.training.progress import Counters
from engines.training.saves.background import Background
from engines.training.saves.divided import has_own_names
from engines.training.saves.parts import random_states, take_part
from engines.training.saves.room import is_disk_error
from engines.training.saves.sharded_parts import RECEIPTS_S, ShardedParts, Stop, sharded_parts
from engines.training.saves.shards import POLL_S, leave_failure
from engines.training.saves.staging import Staging
from engines.world import World

LAST_SHARDS_S = 60.0
"""How long the first process waits for shards after an error has ended its training: others may have ended before."""


class SharedWriter:
    """The writer of all processes of an attempt.

    Args:
        writer: the `CheckpointWriter` of this process, of which the first one's is used.
        world: the processes.
        faults: those that a test requests.
        neighbours: processes on this host.
    """

    def __init__(self, writer: Any, world: World, faults: Faults, neighbours: int = 1) -> None:
        self._writer, self._world, self._faults, self._neighbours = writer, world, faults, neighbours
        self._last_step: int | None = None
        self._own_part = Background()
        self._staging = Staging()
        self._is_asynchronous: bool = writer.is_asynchronous
        self._in_shards: bool | None = None
        self._draft: Path | None = None
        self._stop = Stop()
        self._failure = ""

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
        began_s = time.monotonic()
        self.finish()
        waited_s = time.monotonic() - began_s
        is_new = self.last_step != int(trainer.state.global_step)
        others: list[dict[str, Any]] = []
        if is_new and self._world.size > 1:
            others = self._world.gather_objects(random_states(trainer))[1:]
        if is_new and is_sharded(trainer.model) and self._divides(trainer.model):
            self._stop = Stop()
            parts = sharded_parts(trainer, others, self._world, self._stop)
            save = None
            if self._world.is_first:
                save = self._writer.prepare(
                    trainer,
                    counters,
                    lambda: parts,
                    eval_loss,
                    plan,
                    evaluation_follows=evaluation_follows,
                    began_s=began_s,
                )
            return self._commit_shards(save, parts, counters, int(trainer.state.global_step), waited_s, wait=wait)
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
        self._own_part.finish()
        draft, self._draft = self._draft, None
        if draft is not None:
            failures = self._world.gather_objects(self._failure)
            failed = [f"rank {rank}: {words}" for rank, words in enumerate(failures) if words]
            if failed:
                self._stop.say("; ".join(failed))
            self._failure = ""
        self._writer.finish()
        if draft is not None and self._world.is_first:
            shutil.rmtree(draft, ignore_errors=True)  # what others wrote after the first one had given up
        self._last_step = self._world.broadcast_object(self._writer.last_step)

    def end(self, *, lost: bool = False) -> None:
        """The same when an error ends the attempt: in this process alone, because others may not be there any more.

        Args:
            lost: the error is that another process has ended. It may be the first one, which names checkpoints.
        """
        if self._draft is not None and self._world.is_first:
            self._stop.say("the attempt ends, and a rank has not written its shard", LAST_SHARDS_S)
        self._own_part.finish()
        self._writer.finish()
        # A rank that has failed has the others ended: first, the checkpoint gets its name.
        ends_s = time.monotonic() + RECEIPTS_S
        while not lost and self._draft is not None and not self._world.is_first and self._draft.is_dir():
            if self._failure or time.monotonic() >= ends_s:
                return
            time.sleep(POLL_S)

    def before_update(self) -> None:
        """Wait until what the optimizer of this process is going to change is copied."""
        self._staging.wait()
        self._writer.before_update()

    def check(self) -> None:
        """Raise the bug that has ended a save since the last call, if there is one; waits for nothing."""
        self._own_part.check()
        self._writer.check()

    def best(self) -> Checkpoint | None:
        """The best healthy checkpoint of the lineage."""
        found: Checkpoint | None = self._world.decided(self._writer.best)
        return found

    def _commit_shards(
        self, save: Any, parts: ShardedParts, counters: Counters, step: int, waited_s: float, *, wait: bool
    ) -> bool:
        """Write what each process has; True once it is copied, or once the checkpoint is committed."""
        draft: Path | None = self._world.broadcast_object(None if save is None else save.draft)
        if draft is None:
            return False
        copied = None if wait or not self._is_asynchronous else self._copied(parts, step)
        if self._world.is_first:
            stall_s = None if copied is None else time.monotonic() - save.began_s
            staged = dataclasses.replace(save, parts=copied or parts, stall_s=stall_s)
            self._writer.complete_later(staged, counters, self._staging, self._copied_bytes, waited_s)
        else:
            self._write_later(copied or parts, draft, step)
        self._draft = draft
        if copied is not None:
            return True
        self.finish()
        return self.last_step == step

    def _copied(self, parts: ShardedParts, step: int) -> ShardedParts | None:
        """The parts with copies, if every process has the memory for its own; else None in all, once with a warning."""
        found, reason = self._staging.tried(parts, self._neighbours)
        made = self._world.gather_objects((reason, self._staging.kept_bytes))
        self._copied_bytes = sum(size for _, size in made)
        reasons = [f"rank {rank}: {words}" for rank, (words, _) in enumerate(made) if words]
        if not reasons:
            return found
        self._is_asynchronous = False
        self._staging.release()
        if self._world.is_first:
            self._writer.warn_of_waiting(step, "; ".join(reasons))
        return None

    _copied_bytes = 0

    def _write_later(self, parts: ShardedParts, draft: Path, step: int) -> None:
        """Write the part of a process that is not the first one."""

        def job() -> None:
            try:
                self._staging.fill()
                self._faults.save_part(step, self._world.rank)
                parts.write_own(draft)
            except Exception as error:
                self._failure = str(error) or type(error).__name__
                leave_failure(draft, self._world.rank, self._world.size, error)
                if not is_disk_error(error):
                    raise

        self._own_part.start(job)

    def _divides(self, model: Any) -> bool:
        """Whether each process writes its part; else the first one writes the whole model, and says once why."""
        if self._in_shards is None:
            probe: Path | None = self._world.decided(self._writer.probe)
            shared = self._world.all_agree(probe is not None and probe.is_dir())
            if probe is None:
                return False
            named = has_own_names(model)
            if self._world.is_first:
                probe.rmdir()
                if not shared:  # hosts without a common disk
                    self._writer.warn_of_gathering("other processes do not see its folder of checkpoints")
                elif not named:
                    self._writer.warn_of_gathering("transformers stores weights of this model under other names")
            self._in_shards = shared and named
        return self._in_shards
