"""The machine in one line, cheap enough for every two seconds: psutil and /proc, no driver library.

NVML can crash its process, so a screen does not load it: the devices' names come from /proc, and their load comes from
the newest sample of a live run.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cockpit.planning.models import disk_free
from cockpit.runs.state import OwnDevices
from cockpit.text import formatting
from cockpit.text.device_line import device_line
from cockpit.text.safe_text import safe_text
from engines.events.machine import MachineSampled

GIB = 1 << 30
LOAD_S = 1.0
NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class MachineNow:
    """A reading of the machine; CPU in percent of all cores (None: not measured yet), memory and disk in bytes."""

    host: str
    cores: int
    cpu_percent: float | None
    ram_used_bytes: int
    ram_total_bytes: int
    disk_free_bytes: int | None
    gpus: tuple[str, ...]


class _Load:
    """The load of all cores since the reading before; two readings are at least `LOAD_S` apart.

    The counters of the kernel advance in hundredths of a second: a shorter time would have a load of 0 or of 100%.
    """

    def __init__(self) -> None:
        self._times: tuple[float, float] | None = None
        self._read_s = 0.0
        self._percent: float | None = None

    def percent(self) -> float | None:
        """In percent, measured now or a moment ago; None before the second reading."""
        import psutil  # imported after the first paint

        now_s = time.monotonic()
        if self._times is not None and now_s - self._read_s < LOAD_S:
            return self._percent
        found = psutil.cpu_times()
        every = sum(found) - getattr(found, "guest", 0.0) - getattr(found, "guest_nice", 0.0)
        idle = found.idle + getattr(found, "iowait", 0.0)
        if self._times is not None and every > self._times[0]:
            self._percent = min(100.0, max(0.0, 100 * (1 - (idle - self._times[1]) / (every - self._times[0]))))
        self._times, self._read_s = (every, idle), now_s
        return self._percent


_LOAD = _Load()


def look(runs_root: Path) -> MachineNow:
    """Read the machine."""
    import psutil  # imported after the first paint

    memory = psutil.virtual_memory()
    return MachineNow(
        host=socket.gethostname(),
        cores=os.cpu_count() or 1,
        cpu_percent=_LOAD.percent(),
        ram_used_bytes=memory.total - memory.available,
        ram_total_bytes=memory.total,
        disk_free_bytes=disk_free(runs_root),
        gpus=_gpu_names(),
    )


def still_words(machine: MachineNow) -> list[str]:
    """What the machine is, without its load: a line that stays the same while nothing runs."""
    found = [safe_text(machine.host, 24), formatting.counted(machine.cores, "core")]
    found.append(f"ram {formatting.size(machine.ram_total_bytes)}")
    found += _gpu_words(machine)
    if machine.disk_free_bytes is not None:
        found.append(f"disk {formatting.size(machine.disk_free_bytes // GIB * GIB)} free")
    return found


def words(machine: MachineNow, sample: MachineSampled | None = None, own: OwnDevices | None = None) -> list[str]:
    """The parts of the line with the present load, most important first.

    Args:
        machine: the machine as read here.
        sample: a live run's newest reading, which has the accelerators' load.
        own: the accelerators that the run uses; the line shows these.
    """
    found = [safe_text(machine.host, 24), f"cpu {formatting.load(machine.cpu_percent)} of {machine.cores}"]
    found.append(f"ram {formatting.of_total(machine.ram_used_bytes, machine.ram_total_bytes)}")
    found += _gpu_words(machine, sample, own)
    if machine.disk_free_bytes is not None:
        found.append(f"disk {formatting.size(machine.disk_free_bytes)} free")
    return found


def _gpu_words(machine: MachineNow, sample: MachineSampled | None = None, own: OwnDevices | None = None) -> list[str]:
    if sample is not None and sample.host == machine.host and sample.devices:
        known = own is not None and own.known and own.devices
        return [device_line(device) for device in (own.devices if own and known else sample.devices)[:4]]
    if not machine.gpus:
        return ["no gpu"]
    first = machine.gpus[0]
    return [f"gpu {first}" if len(machine.gpus) == 1 else f"{len(machine.gpus)} gpus {first}"]


@lru_cache(maxsize=1)
def _gpu_names() -> tuple[str, ...]:
    names = []
    try:
        for folder in sorted(NVIDIA.iterdir()):
            lines = (folder / "information").read_text(errors="replace").splitlines()
            models = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
            names += [safe_text(model.removeprefix("NVIDIA "), 30) for model in models]
    except OSError:
        return tuple(names)
    return tuple(names)
