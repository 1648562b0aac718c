"""Faults that tests request through `COCKPIT_TEST_FAULTS`; a real run has none.

Each is an object with "step" and, where it matters, "stage" (any by default) and "attempt" (1 by default):

- `nan_loss {step, micro_batch, rank}`: multiply the loss of that micro-batch (counted from 1) of that process (0 by
  default) by NaN, before backward.
- `large_gradient {step, factor}`: multiply the step's loss for backward, and so its gradient.
- `memory_limit {rows, step}`: a micro-batch of more rows does not fit, from that step on (1 by default), in every
  attempt; with `checkpointing`, it fits once gradient checkpointing is on.
- `disk_full {step, rank}`: fail the save at that step as on a full disk; of several processes, in that one (0 by
  default).
- `kill_during_save {step, rank}`: SIGKILL to the engine after the checkpoint's files and before its manifest; to a
  process above 0, before its shard.
- `exit_at_step {step}`: SIGKILL to the engine right after that step, before any save.
"""

from __future__ import annotations

import errno
import math
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Faults:
    """The faults of one attempt."""

    requested: Mapping[str, Any]
    stage: str
    attempt: int

    def loss_factor(self, step: int, micro_batch: int, rank: int = 0) -> float | None:
        """The factor on the micro-batch's loss, or None."""
        fault = self._of("nan_loss", step)
        if fault is not None and micro_batch == fault.get("micro_batch", 1) and rank == fault.get("rank", 0):
            return math.nan
        fault = self._of("large_gradient", step)
        return None if fault is None else float(fault.get("factor", 1e6))

    def allocate(self, step: int, rows: int, *, checkpointing: bool) -> None:
        """Called before the forward pass of a micro-batch with this many rows."""
        fault = self.requested.get("memory_limit") if self.requested else None
        if not isinstance(fault, Mapping) or step < fault.get("step", 1) or rows <= fault["rows"]:
            return
        if fault.get("stage", self.stage) == self.stage and not (checkpointing and fault.get("checkpointing")):
            # torch's own words on a CPU; its class is RuntimeError there.
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:137] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
                " allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
            )

    def save(self, step: int) -> None:
        """Called during a save, before the manifest is written."""
        self.save_part(step, 0)

    def save_part(self, step: int, rank: int) -> None:
        """Called during a save of several processes, before this one writes its part."""
        full, killed = self._of("disk_full", step), self._of("kill_during_save", step)
        if full is not None and full.get("rank", 0) == rank:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if killed is not None and killed.get("rank", 0) == rank:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self, step: int) -> None:
        """Called right after the optimizer has stepped."""
        if self._of("exit_at_step", step) is not None:
            os.kill(os.getpid(), signal.SIGKILL)

    def _of(self, name: str, step: int) -> Mapping[str, Any] | None:
        if not self.requested:
            return None
        fault = self.requested.get(name)
        if not isinstance(fault, Mapping) or fault.get("step") != step:
            return None
        applies = fault.get("stage", self.stage) == self.stage and fault.get("attempt", 1) == self.attempt
        return fault if applies else None
