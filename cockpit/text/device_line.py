"""A GPU's sample in a few words, for status lines: `gpu0 87% 61°C 12/24 GiB`."""

from __future__ import annotations

from cockpit.text import formatting
from engines.events.machine import Device


def device_line(device: Device) -> str:
    """Load, temperature and memory, as far as they were measured."""
    parts = [f"gpu{device.id}"]
    if device.util_percent is not None:
        parts.append(formatting.load(device.util_percent))
    if device.temperature_c is not None:
        parts.append(formatting.temperature(device.temperature_c))
    if device.memory_used_bytes is not None:
        parts.append(formatting.of_total(device.memory_used_bytes, device.memory_total_bytes))
    return " ".join(parts)
