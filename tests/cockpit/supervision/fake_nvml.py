"""Fake NVML bindings that fail in different ways. Their errors have the names of NVML's errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def error(name: str, text: str) -> Exception:
    """An error of the class that the real binding makes at run time."""
    made: Exception = type(f"NVMLError_{name}", (Exception,), {})(text)
    return made


def fails(made: Exception) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise made

    return call


def uuid_of(number: int) -> str:
    """The UUID of the fake's device of that number."""
    return f"GPU-00000000-0000-4000-8000-{number:012d}"


class FakeNvml:
    """Healthy devices by default; any call can be replaced by its name."""

    def __init__(self, *names: str, **calls: Callable[..., Any]) -> None:
        self.names = names or ("NVIDIA H200",)
        self.inits = 0
        for name, call in calls.items():
            setattr(self, name, call)

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        self.inits += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> Any:  # noqa: N802
        return self.names[handle]

    def nvmlDeviceGetUUID(self, handle: int) -> Any:  # noqa: N802
        return uuid_of(handle)

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(busId=f"00000000:{0x17 + handle:02X}:00.0".encode())

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=10 << 30, total=140 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=75, memory=20)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 412_500


NOT_SUPPORTED = error("NotSupported", "Not Supported")
GPU_IS_LOST = error("GpuIsLost", "GPU is lost")
CRASHES = "import os\n\ndef nvmlInit():\n    os.abort()\n"
"""The text of a `pynvml.py` that takes its process down, as a driver in trouble does."""


def hang() -> tuple[Callable[..., Any], threading.Event]:
    """A call that does not return until the event is set."""
    let_go = threading.Event()

    def call(*_: object) -> int:
        let_go.wait()
        return 1

    return call, let_go
