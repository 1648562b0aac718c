"""Copies of a training's parts in host memory: the training continues while they are written.

Only what the next step may change is copied. The frozen weights under an adapter stay where they are. Copies are made
by storage, so tensors that share one still do, and the files are those of a save without copies. The memory of one save
is used again by the next.

Weights and optimizer change only when the optimizer steps: the passes of the next step read them. So the thread that
writes also copies, beside these passes, and the training waits for the copy only before the update. What a device has
is copied at once, in the order of its stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from threading import Event
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch

from engines.exhausted_memory import exhausted_memory
from engines.training.saves.parts import Copies
from engines.training.saves.room import why_no_copy
from recipes.quantities import size


class Changing(Protocol):
    """The parts of a training, or of one of its processes."""

    def changing(self) -> Iterator[torch.Tensor]:
        """Every tensor that the next step may change."""
        ...

    def copied(self, copies: Copies) -> Self:
        """The same with copies of them."""
        ...


Saved = TypeVar("Saved", bound=Changing)


class Staging:
    """Host memory for the copies of one save at a time."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bool], list[torch.Tensor]] = {}
        self._due: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._done = Event()
        self._done.set()
        self._waits_since_s: float | None = None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the memory that is kept from the last save."""
        return sum(buffer.numel() for buffers in self._kept.values() for buffer in buffers)

    def copied(self, parts: Saved) -> Saved:
        """The parts with copies of everything that the next step may change; those of an earlier call are overwritten.

        What is in host memory is copied by `fill`, which the caller has another thread call.

        Raises:
            RuntimeError: the memory is exhausted.
        """
        copies = _Copies(self._kept)
        staged = parts.copied(copies)
        self._kept = copies.used
        if copies.from_device:
            torch.cuda.synchronize()
        self._due, self._waits_since_s = copies.due, None
        self._done.clear()
        return staged

    def fill(self) -> float:
        """Make the copies that are due; returns for how many seconds another thread has waited in `wait`."""
        try:
            for buffer, source in self._due:
                np.copyto(
                    buffer.numpy(), source.numpy()
                )  # in this thread alone: torch would take those of the training
            since_s = self._waits_since_s
            return 0.0 if since_s is None else time.monotonic() - since_s
        finally:
            self._due = []
            self._done.set()

    def wait(self) -> None:
        """Wait for `fill`, before anything changes what it copies."""
        if not self._done.is_set():
            self._waits_since_s = time.monotonic()
            self._done.wait()

    def tried(self, parts: Saved, processes: int = 1) -> tuple[Saved | None, str]:
        """The parts with copies, or None and why host memory does not take them.

        Args:
            parts: of this process.
            processes: how many of this host make copies of this size.
        """
        needed = staged_bytes(parts)
        reason = why_no_copy((needed - self.kept_bytes) * processes)
        try:
            if not reason:
                return self.copied(parts), ""
        except (RuntimeError, MemoryError) as error:
            reason = exhausted_memory(error)
            if not reason:
                raise
            reason = f"its copy needs {size(needed)}, and memory ran out ({reason})"
        self.release()
        return None, reason

    def release(self) -> None:
        """Give the memory back; copies that are due are not made."""
        self._kept, self._due = {}, []
        self._done.set()


class _Copies:
    """One round of copies: buffers of the round before, by their size, are used first."""

    def __init__(self, kept: Mapping[tuple[int, bool], list[torch.Tensor]]) -> None:
        self._free = {key: list(buffers) for key, buffers in kept.items()}
        self._known: dict[int, torch.Tensor] = {}
        self.used: dict[tuple[int, bool], list[torch.Tensor]] = {}
        self.due: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.from_device = False

    def within(self, value: Any) -> Any:
        """The same tables and lists with copies of their tensors."""
        if torch.is_tensor(value):
            return self.of(value)
        if isinstance(value, Mapping):
            return {name: self.within(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.within(item) for item in value]
        return tuple(self.within(item) for item in value) if type(value) is tuple else value

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor: a view of the copy of its storage, with its own shape and strides."""
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        buffer = self._known.get(storage._cdata)
        if buffer is None:
            buffer = self._known[storage._cdata] = self._filled(storage, tensor.device)
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(buffer.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())

    def _filled(self, storage: torch.UntypedStorage, device: torch.device) -> torch.Tensor:
        pinned = device.type == "cuda"  # a GPU copies into pinned memory many times faster
        key = storage.nbytes(), pinned
        free = self._free.get(key)
        buffer = free.pop() if free else torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pinned)
        self.used.setdefault(key, []).append(buffer)
        source = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
        if device.type == "cpu":
            self.due.append((buffer, source))
        else:
            buffer.copy_(source, non_blocking=pinned)
        self.from_device = self.from_device or pinned
        return buffer


def staged_bytes(parts: Changing) -> int:
    """Bytes of host memory that copies of the parts take."""
    storages = (tensor.untyped_storage() for tensor in parts.changing())
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
