"""The accelerators that this engine computes on, as a record for those who watch them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch

from engines.context import StageContext
from engines.events.attempts import DevicesUsed, UsedDevice
from engines.machine.device_identity import nvidia_gpus, of_properties
from engines.processor import memory_bytes
from recipes.problems import printable
from recipes.quantities import size


def report_devices(ctx: StageContext[Any], devices: Iterable[torch.device]) -> None:
    """Journal which accelerators the engine uses; on the CPU, warn of a GPU that torch cannot use."""
    used = used_devices(devices)
    if used:
        bounded = bound_shared_memory()
        if bounded:
            ctx.phase(bounded)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        ctx.emit(DevicesUsed(stage=ctx.stage_name, attempt=ctx.attempt, devices=used, visible=visible))
        return
    unseen = why_unseen(nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if unseen:
        ctx.warn(unseen)


def why_unseen(gpus: int, visible: str | None) -> str:
    """Why torch computes on the CPU of a machine with NVIDIA GPUs; empty without one, or if the operator hid them.

    Args:
        gpus: GPUs that the driver lists.
        visible: the variable CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    if not gpus or torch.cuda.is_available() or (visible is not None and visible.strip() in {"", "-1", "NoDevFiles"}):
        return ""
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} is built without CUDA"
        way_out = "install a CUDA build of torch in the stage's interpreter"
    else:
        reason, way_out = _of_cuda(), "compare the driver's version (nvidia-smi) with the one that this torch needs"
    counted = "an NVIDIA GPU" if gpus == 1 else f"{gpus} NVIDIA GPUs"
    return f"this machine has {counted}, but the engine computes on the CPU: {reason}; {way_out}"


def _of_cuda() -> str:
    """What CUDA says when it is initialized."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return printable(str(error).strip().partition("\n")[0], 300)
    return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds none that it may use"


def used_devices(devices: Iterable[torch.device]) -> list[UsedDevice]:
    """The CUDA devices among these, each once, by torch's number."""
    numbers = {
        device.index if device.index is not None else torch.cuda.current_device()
        for device in devices
        if device.type == "cuda"
    }
    return [of_properties(number, torch.cuda.get_device_properties(number)) for number in sorted(numbers)]


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most that torch's allocator has held on a GPU since the start of this process, in tensors and in all, as
    series of a step; nothing on the CPU. What the driver counts for the process is more: CUDA itself is not in it."""
    if device.type != "cuda":
        return {}
    return {
        "cuda/peak_allocated_bytes": float(torch.cuda.max_memory_allocated(device)),
        "cuda/peak_reserved_bytes": float(torch.cuda.max_memory_reserved(device)),
    }


RESERVE_SHARE, RESERVE_BYTES = 0.04, 2 << 30
"""What stays free for the rest of a machine whose GPU uses its memory: this share of it, and at least so many bytes."""


def shares_memory() -> bool:
    """Whether the GPU uses the machine's own memory, as on a GB10."""
    if not torch.cuda.is_available():
        return False
    return bool(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "is_integrated", False))


def bound_shared_memory(read: Callable[[], tuple[int, int] | None] = memory_bytes) -> str:
    """Let torch's allocator fail before a machine whose GPU uses its memory has none left: such a machine stands still.

    What then fails is exhausted memory, for which the stage's retries have smaller micro-batches.

    Args:
        read: the machine's memory and what is available of it, in bytes; None if it is not known.

    Returns:
        What was bounded, for the operator; empty on other machines.
    """
    memory = read() if shares_memory() else None
    if memory is None:
        return ""
    total, available = memory
    allowed = max(0, torch.cuda.memory_reserved() + available - _reserve(total))
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    kept = size(_reserve(total))
    return f"the GPU uses the machine's memory: the engine takes at most {size(allowed)}, and {kept} stay free"


def require_shared_memory(read: Callable[[], tuple[int, int] | None] = memory_bytes) -> None:
    """Refuse to continue on a machine whose GPU uses its memory when other programs have taken what should stay free.

    Raises:
        MemoryError: less than half of the reserve is available.
    """
    memory = read() if shares_memory() else None
    if memory is not None and memory[1] < _reserve(memory[0]) // 2:
        raise MemoryError(
            f"the machine's memory, which its GPU uses too, is nearly full: {size(memory[1])} of {size(memory[0])} are"
            " available"
        )


def _reserve(total: int) -> int:
    return max(RESERVE_BYTES, int(RESERVE_SHARE * total))


def place() -> dict[str, Any]:
    """Where this process trains, for the manifest of a checkpoint: the host's name, and the name and UUID (or bus
    address) of its card; no card on the CPU."""
    cards = used_devices([torch.device("cuda")] if torch.cuda.is_available() else [])
    return {
        "host": socket.gethostname(),
        "cards": [{"name": card.name, "id": card.uuid or card.pci, "capability": card.capability} for card in cards],
    }
