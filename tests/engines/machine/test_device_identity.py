from __future__ import annotations

from types import SimpleNamespace

import pytest

from engines.events.attempts import UsedDevice
from engines.events.machine import Device
from engines.machine.device_identity import is_same, of_properties, pci_of_nvml

UUID = "5ba1a3f4-3d2c-4d3e-9a57-0c4a5c0f9c11"


def test_torch_s_device_is_the_driver_s_by_uuid_whatever_their_numbers() -> None:
    used = of_properties(0, SimpleNamespace(name="NVIDIA H100", uuid=UUID))
    assert used == UsedDevice(number=0, name="NVIDIA H100", uuid=f"GPU-{UUID}")
    assert is_same(Device(id=3, name="NVIDIA H100", uuid=f"GPU-{UUID}"), used)
    assert not is_same(Device(id=0, name="NVIDIA H100", uuid="GPU-other"), used)


def test_a_device_without_a_uuid_is_known_by_its_bus_address() -> None:
    properties = SimpleNamespace(name="A", pci_domain_id=0, pci_bus_id=0xCA, pci_device_id=0)
    used = of_properties(0, properties)
    assert (used.uuid, used.pci) == ("", "0:ca:0")
    assert is_same(Device(id=2, name="A", uuid="GPU-x", pci=pci_of_nvml("00000000:CA:00.0")), used)
    assert not is_same(Device(id=0, name="A", uuid="GPU-x", pci=pci_of_nvml("00000000:17:00.0")), used)


def test_a_part_of_a_device_is_found_at_the_address_of_the_whole() -> None:
    used = UsedDevice(number=0, name="A MIG 1g", uuid="GPU-part", pci="0:17:0")
    assert is_same(Device(id=0, name="A", uuid="GPU-whole", pci="0:17:0"), used)


def test_two_devices_without_identity_are_not_the_same() -> None:
    assert not is_same(Device(id=0, name="A"), UsedDevice(number=0, name="A"))


@pytest.mark.parametrize("text", ["", "17:00.0", "x:y:z.0"])
def test_what_is_not_a_bus_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        pci_of_nvml(text)
