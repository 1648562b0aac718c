"""Readings of the machine: CPU, memory and accelerators; what cannot be measured is null, never zero."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil

from engines.events.machine import Device, MachineSampled
from engines.machine.device_identity import pci_of_nvml
from recipes import quantities

NVML_TIMEOUT_S = 5.0
CORES = os.cpu_count() or 1
UNIFIED_NAMES = ("GB10", "GB110", "Orin", "Thor", "Tegra")
"""Integrated devices that share the machine's memory: NVML reports "not supported" for it."""

LOST = ("NVMLError_GpuIsLost", "NVMLError_ResetRequired")


@dataclass
class DeviceReading:
    """Devices, whether they share the machine's memory, and the problem ("" without a problem).

    `processes` are the pids that compute on each device, by its number, where the driver lists them.
    """

    devices: list[Device]
    unified: bool = False
    problem: str = ""
    processes: dict[int, frozenset[int]] = field(default_factory=dict)


class Accelerators:
    """NVIDIA devices through NVML, read on a separate thread so that a hang costs only telemetry."""

    def __init__(self, *, nvml: Any = None, timeout_s: float = NVML_TIMEOUT_S) -> None:
        self._nvml = nvml
        self._timeout_s = timeout_s
        self._ready = False
        self._hung: threading.Thread | None = None
        self._result: DeviceReading | None = None
        self.absent = False

    def read(self) -> DeviceReading:
        """One reading; if it fails, `problem` contains the reason. A machine without NVIDIA devices has no problem."""
        if self.absent:
            return DeviceReading([])
        if self._hung is not None and self._hung.is_alive():
            return DeviceReading([], problem="GPU telemetry lost: NVML still does not respond")
        self._result = None
        thread = threading.Thread(target=self._read, name="nvml", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if thread.is_alive():
            self._hung = thread
            return DeviceReading(
                [], problem=f"GPU telemetry lost: NVML did not respond within {quantities.duration(self._timeout_s)}"
            )
        self._hung = None
        result: DeviceReading | None = self._result  # set by the thread
        return result or DeviceReading([], problem="GPU telemetry lost: NVML returned nothing")

    def _read(self) -> None:
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            if not self._ready:
                self._nvml.nvmlInit()
                self._ready = True
            self._result = self._devices()
        except Exception as error:  # noqa: BLE001 - NVML creates its exception classes at run time; each becomes a message
            name = type(error).__name__
            self._ready = False  # after a reset of the driver, NVML must be initialized again
            missing = name in {"NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded", "ModuleNotFoundError"}
            self.absent = missing
            self._result = DeviceReading([], problem="" if missing else f"GPU telemetry lost: {error}")

    def _devices(self) -> DeviceReading:
        reading = DeviceReading([])
        lost: dict[int, str] = {}
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                name = _text(self._nvml.nvmlDeviceGetName(handle))
            except Exception as error:  # noqa: BLE001 - see _read
                lost[index] = str(error)
                continue
            device, shared, problem = self._device(index, handle, name)
            reading.devices.append(device)
            with suppress(Exception):  # a driver that does not list them leaves the question open
                listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                reading.processes[index] = frozenset(int(process.pid) for process in listed)
            reading.unified = reading.unified or shared
            if problem:
                lost[index] = problem
        reading.problem = "; ".join(f"GPU {index} telemetry lost: {text}" for index, text in lost.items())
        return reading

    def _device(self, index: int, handle: Any, name: str) -> tuple[Device, bool, str]:
        """One device, whether it shares the machine's memory, and its problem."""
        nvml, problems = self._nvml, dict[str, None]()

        def ask(question: Callable[[Any], float]) -> float | None:
            try:
                return float(question(handle))
            except Exception as error:  # noqa: BLE001 - an unsupported reading is null; the others are kept
                if type(error).__name__ in LOST:
                    problems[str(error)] = None
                return None

        used = total = None
        shared = False
        try:
            info = nvml.nvmlDeviceGetMemoryInfo(handle)
            used, total = int(info.used), int(info.total)
        except Exception as error:  # noqa: BLE001 - see _read
            # Only "not supported" on a known integrated device means shared memory; a lost GPU must not look like it.
            if type(error).__name__ in LOST:
                problems[str(error)] = None
            elif type(error).__name__ == "NVMLError_NotSupported" and any(part in name for part in UNIFIED_NAMES):
                memory = psutil.virtual_memory()
                used, total, shared = memory.total - memory.available, memory.total, True

        def identity(question: Callable[[Any], str]) -> str:
            try:
                return question(handle)
            except Exception:  # noqa: BLE001 - a device without one is still measured
                return ""

        device = Device(
            id=index,
            name=name,
            util_percent=ask(lambda h: nvml.nvmlDeviceGetUtilizationRates(h).gpu),
            memory_used_bytes=used,
            memory_total_bytes=total,
            temperature_c=ask(lambda h: nvml.nvmlDeviceGetTemperature(h, 0)),
            power_w=ask(lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1000),
            uuid=identity(lambda h: _text(nvml.nvmlDeviceGetUUID(h))),
            pci=identity(lambda h: pci_of_nvml(_text(nvml.nvmlDeviceGetPciInfo(h).busId))),
        )
        return device, shared, ", ".join(problems)


class EngineUse:
    """What an engine's process tree uses: resident bytes (private and shared), and CPU since the last reading."""

    def __init__(self) -> None:
        self._last: tuple[int, float, float] | None = None
        self.pids: frozenset[int] = frozenset()
        """the processes of the tree at the last reading"""

    def read(self, pid: int | None, now_s: float) -> tuple[int | None, float | None]:
        """The tree's bytes, and its CPU as a share of all cores in percent; None where it cannot be measured.

        Args:
            pid: the engine's process; None without an engine.
            now_s: monotonic seconds.
        """
        before, self._last = self._last, None
        self.pids = frozenset()
        if pid is None:
            return None, None
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
        except psutil.Error:
            return None, None
        self.pids = frozenset(member.pid for member in family)
        rss, cpu_s = 0, 0.0
        for member in family:
            try:
                with member.oneshot():
                    rss += member.memory_info().rss
                    times = member.cpu_times()
                    cpu_s += times.user + times.system
            except psutil.Error:  # the process ended after it was listed
                continue
        self._last = (pid, cpu_s, now_s)
        if before is None or before[0] != pid or now_s <= before[2] or cpu_s < before[1]:
            return rss or None, None
        return rss or None, 100.0 * (cpu_s - before[1]) / (now_s - before[2]) / CORES


def sample_machine(
    accelerators: DeviceReading, engine_pid: int | None, stage: str | None, use: EngineUse | None = None
) -> MachineSampled:
    """One reading of the machine, with what the engine's process tree uses of it.

    Args:
        accelerators: the devices.
        engine_pid: the engine's process.
        stage: the engine's stage.
        use: remembers the tree's CPU between two readings; without it, the share is not measured.
    """
    memory = psutil.virtual_memory()
    use = use or EngineUse()
    rss, engine_cpu = use.read(engine_pid, time.monotonic())
    return MachineSampled(
        host=socket.gethostname(),
        cpu_percent=psutil.cpu_percent(interval=None),
        ram_total_bytes=memory.total,
        ram_available_bytes=memory.available,
        engine_rss_bytes=rss,
        unified=accelerators.unified,
        devices=[_beside(device, accelerators.processes, use.pids) for device in accelerators.devices],
        stage=stage,
        engine_cpu_percent=engine_cpu,
        cores=CORES,
    )


def _beside(device: Device, processes: Mapping[int, frozenset[int]], engine: frozenset[int]) -> Device:
    """The device with the number of processes on it beside the engine's, if the engine's are seen on it."""
    there = processes.get(device.id, frozenset())
    if not there & engine:
        return device
    return msgspec.structs.replace(device, other_processes=len(there - engine))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
