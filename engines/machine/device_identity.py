"""Which accelerator is which: the driver's numbers, CUDA's numbers and a program's own numbers all differ.

Two records mean the same device if they have the same UUID, or the same bus address where one of them has no UUID. A
part of a device (MIG) has a UUID of its own and the address of the whole.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.events.attempts import UsedDevice
from engines.events.machine import Device

_DRIVER = Path("/proc/driver/nvidia/gpus")
_NODES = Path("/dev")


def is_same(device: Device, used: UsedDevice) -> bool:
    """Whether the driver's device is the one that an engine uses, or has it as a part."""
    if device.uuid and used.uuid and device.uuid.lower() == used.uuid.lower():
        return True
    return bool(device.pci) and device.pci == used.pci


def pci_of_nvml(bus_id: str) -> str:
    """`00000000:17:00.0`, as NVML writes it, as domain, bus and device: `0:17:0`.

    Raises:
        ValueError: it is not a bus address.
    """
    domain, bus, device = bus_id.strip().partition(".")[0].split(":")
    return f"{int(domain, 16):x}:{int(bus, 16):x}:{int(device, 16):x}"


def of_properties(number: int, properties: Any) -> UsedDevice:
    """The device of torch's properties; what this build of torch does not know of it stays empty.

    Args:
        number: torch's number of the device.
        properties: what `torch.cuda.get_device_properties` returned.
    """
    uuid = getattr(properties, "uuid", None)
    text = "" if uuid is None else str(uuid)
    parts = [getattr(properties, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
    pci = ":".join(f"{part:x}" for part in parts if isinstance(part, int)) if None not in parts else ""
    uuid_of_nvml = text if not text or text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"
    major, minor = (getattr(properties, name, None) for name in ("major", "minor"))
    capability = f"{major}.{minor}" if isinstance(major, int) and isinstance(minor, int) else ""
    return UsedDevice(number=number, name=str(properties.name), uuid=uuid_of_nvml, pci=pci, capability=capability)


def nvidia_gpus() -> int:
    """The number of NVIDIA GPUs that the driver of this machine lists, without a library of it; 0 without a driver."""
    with suppress(OSError):
        found = len(list(_DRIVER.iterdir()))
        if found:
            return found
    with suppress(OSError):  # integrated ones, and containers that have the devices only
        return sum(1 for path in _NODES.glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit())
    return 0
