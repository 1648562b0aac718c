"""The accelerators that this engine computes on, as a record for those who watch them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

import torch

from engines.context import StageContext
from engines.device_identity import of_properties
from engines.events import DevicesUsed, UsedDevice


def report_devices(ctx: StageContext[Any], devices: Iterable[torch.device]) -> None:
    """Journal which accelerators the engine uses; nothing on the CPU."""
    used = used_devices(devices)
    if used:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        ctx.emit(DevicesUsed(stage=ctx.stage_name, attempt=ctx.attempt, devices=used, visible=visible))


def used_devices(devices: Iterable[torch.device]) -> list[UsedDevice]:
    """The CUDA devices among these, each once, by torch's number."""
    numbers = {
        device.index if device.index is not None else torch.cuda.current_device()
        for device in devices
        if device.type == "cuda"
    }
    return [of_properties(number, torch.cuda.get_device_properties(number)) for number in sorted(numbers)]


def place() -> dict[str, Any]:
    """Where this process trains, for the manifest of a checkpoint: the host's name, and the name and UUID (or bus
    address) of its card; no card on the CPU."""
    cards = used_devices([torch.device("cuda")] if torch.cuda.is_available() else [])
    return {
        "host": socket.gethostname(),
        "cards": [{"name": card.name, "id": card.uuid or card.pci} for card in cards],
    }
