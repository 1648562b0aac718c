"""The accelerators that this engine computes on, as a record for those who watch them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

import torch

from engines.context import StageContext
from engines.device_identity import nvidia_gpus, of_properties
from engines.events import DevicesUsed, UsedDevice
from recipes.problems import printable


def report_devices(ctx: StageContext[Any], devices: Iterable[torch.device]) -> None:
    """Journal which accelerators the engine uses; on the CPU, warn of a GPU that torch cannot use."""
    used = used_devices(devices)
    if used:
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


def place() -> dict[str, Any]:
    """Where this process trains, for the manifest of a checkpoint: the host's name, and the name and UUID (or bus
    address) of its card; no card on the CPU."""
    cards = used_devices([torch.device("cuda")] if torch.cuda.is_available() else [])
    return {
        "host": socket.gethostname(),
        "cards": [{"name": card.name, "id": card.uuid or card.pci, "capability": card.capability} for card in cards],
    }
