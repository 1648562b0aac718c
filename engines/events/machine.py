"""Events of the machine: its memory, its load, its accelerators."""

from __future__ import annotations

import msgspec

from engines.events.event import Event


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator; null means "not reported". On a unified-memory machine its memory is the machine's.

    `id` is NVML's number. `uuid` and `pci` identify the device, as in `UsedDevice`; empty in older journals.
    `other_processes` counts the processes that compute on it beside the engine's; null where the engine's own are not
    seen on it, because the engine computes elsewhere or the driver numbers processes differently (in a container).
    """

    id: int
    name: str
    util_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    uuid: str = ""
    pci: str = ""
    other_processes: int | None = None


class MachineSampled(Event, frozen=True, kw_only=True, tag="machine_sampled"):
    """A reading of the machine. `cpu_percent` and `engine_cpu_percent` (the engine's process tree) are shares of all
    `cores`; null means "not measurable"."""

    host: str
    cpu_percent: float | None
    ram_total_bytes: int | None
    ram_available_bytes: int | None
    engine_rss_bytes: int | None
    unified: bool
    devices: list[Device]
    stage: str | None = None
    engine_cpu_percent: float | None = None
    cores: int | None = None
