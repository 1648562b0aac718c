from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from cockpit.supervision.machine import UNIFIED_NAMES, Accelerators, DeviceReading, EngineUse, sample_machine
from tests.cockpit.supervision.fake_nvml import GPU_IS_LOST, NOT_SUPPORTED, FakeNvml, error, fails, hang, uuid_of
from tests.runs.harness import wait_for


def test_a_healthy_device_is_read_in_bytes_watts_and_degrees() -> None:
    reading = Accelerators(nvml=FakeNvml("NVIDIA H200", "NVIDIA H200")).read()
    assert (reading.problem, reading.unified) == ("", False)
    first, second = reading.devices
    assert (first.id, second.id) == (0, 1)
    assert first.name == "NVIDIA H200"
    assert (first.util_percent, first.temperature_c, first.power_w) == (75.0, 61.0, 412.5)
    assert (first.memory_used_bytes, first.memory_total_bytes) == (10 << 30, 140 << 30)


def test_a_device_has_what_identifies_it_beside_the_driver_s_number() -> None:
    reading = Accelerators(nvml=FakeNvml("A", "B")).read()
    assert [(device.uuid, device.pci) for device in reading.devices] == [(uuid_of(0), "0:17:0"), (uuid_of(1), "0:18:0")]


def test_a_device_without_identity_is_still_measured() -> None:
    unsupported = {"nvmlDeviceGetUUID": fails(NOT_SUPPORTED), "nvmlDeviceGetPciInfo": fails(NOT_SUPPORTED)}
    (device,) = Accelerators(nvml=FakeNvml("A", **unsupported)).read().devices
    assert (device.uuid, device.pci, device.util_percent) == ("", "", 75.0)


@pytest.mark.parametrize("name", ["LibraryNotFound", "DriverNotLoaded"])
def test_a_machine_without_the_driver_has_no_devices_no_problem_and_is_not_asked_again(name: str) -> None:
    asked = []

    def init() -> None:
        asked.append(1)
        raise error(name, "none")

    accelerators = Accelerators(nvml=FakeNvml(nvmlInit=init))
    for _ in range(3):
        assert accelerators.read() == DeviceReading([])
    assert len(asked) == 1


def test_a_missing_binding_is_a_machine_without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    accelerators = Accelerators()
    assert accelerators.read() == DeviceReading([])
    assert accelerators.absent


@pytest.mark.parametrize("name", [f"NVIDIA {part}" for part in UNIFIED_NAMES])
def test_an_integrated_device_shares_the_machine_s_memory(name: str) -> None:
    reading = Accelerators(nvml=FakeNvml(name, nvmlDeviceGetMemoryInfo=fails(NOT_SUPPORTED))).read()
    (device,) = reading.devices
    assert reading.unified
    assert reading.problem == ""
    assert device.memory_total_bytes == psutil.virtual_memory().total
    assert device.memory_used_bytes is not None
    assert 0 < device.memory_used_bytes < psutil.virtual_memory().total


def test_an_unknown_device_that_reports_no_memory_has_none_and_shares_none() -> None:
    reading = Accelerators(nvml=FakeNvml("Mystery 9", nvmlDeviceGetMemoryInfo=fails(NOT_SUPPORTED))).read()
    (device,) = reading.devices
    assert not reading.unified
    assert (device.memory_used_bytes, device.memory_total_bytes) == (None, None)
    assert device.util_percent == 75.0, "what it does report is shown"


@pytest.mark.parametrize("text", ["GpuIsLost", "Unknown", "NoPermission"])
def test_a_failing_integrated_device_is_not_mistaken_for_shared_memory(text: str) -> None:
    reading = Accelerators(nvml=FakeNvml("NVIDIA GB10", nvmlDeviceGetMemoryInfo=fails(error(text, text)))).read()
    assert not reading.unified
    assert reading.devices[0].memory_used_bytes is None


def test_a_lost_device_is_named_and_the_others_are_read() -> None:
    def handle(index: int) -> int:
        if index == 1:
            raise GPU_IS_LOST
        return index

    reading = Accelerators(nvml=FakeNvml("A", "B", "C", nvmlDeviceGetHandleByIndex=handle)).read()
    assert [device.id for device in reading.devices] == [0, 2]
    assert reading.problem == "GPU 1 telemetry lost: GPU is lost"


def test_a_device_lost_between_two_readings_is_null_and_not_zero() -> None:
    lost = {
        name: fails(GPU_IS_LOST)
        for name in (
            "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTemperature",
            "nvmlDeviceGetPowerUsage",
        )
    }  # fmt: skip
    reading = Accelerators(nvml=FakeNvml(**lost)).read()
    (device,) = reading.devices
    assert reading.problem == "GPU 0 telemetry lost: GPU is lost"
    assert {device.util_percent, device.memory_used_bytes, device.temperature_c, device.power_w} == {None}


def test_a_reading_that_one_device_does_not_offer_is_null_and_no_problem() -> None:
    reading = Accelerators(nvml=FakeNvml(nvmlDeviceGetPowerUsage=fails(NOT_SUPPORTED))).read()
    assert reading.problem == ""
    assert reading.devices[0].power_w is None
    assert reading.devices[0].temperature_c == 61.0


def test_a_failing_driver_is_a_problem_and_is_initialized_again() -> None:
    nvml = FakeNvml()
    accelerators = Accelerators(nvml=nvml)
    assert accelerators.read().problem == ""
    nvml.nvmlDeviceGetCount = fails(error("Uninitialized", "Uninitialized"))  # type: ignore[method-assign]
    assert accelerators.read().problem == "GPU telemetry lost: Uninitialized"
    del nvml.nvmlDeviceGetCount
    assert accelerators.read().problem == ""
    assert nvml.inits == 2


def test_a_hanging_driver_costs_one_timeout_and_is_used_again_once_it_responds() -> None:
    call, let_go = hang()
    accelerators = Accelerators(nvml=FakeNvml(nvmlDeviceGetCount=call), timeout_s=0.05)
    assert "did not respond within 0.05s" in accelerators.read().problem
    for _ in range(3):
        assert "still does not respond" in accelerators.read().problem
    stuck = accelerators._hung
    assert stuck is not None
    let_go.set()
    stuck.join()
    assert accelerators.read().problem == ""


@pytest.mark.parametrize("name", [b"NVIDIA H200", b"caf\xe9", "NVIDIA H200\x1b[2J"])
def test_a_device_s_name_may_be_bytes_and_anything(name: bytes | str) -> None:
    reading = Accelerators(nvml=FakeNvml(name)).read()  # type: ignore[arg-type]
    assert reading.devices[0].name


def beside(*listed: int) -> list[int | None]:
    """How many other processes are on a device that lists these, for an engine that is this process."""
    processes = [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in listed]
    nvml = FakeNvml("A", nvmlDeviceGetComputeRunningProcesses=lambda _: processes)
    sample = sample_machine(Accelerators(nvml=nvml).read(), os.getpid(), "base")
    return [device.other_processes for device in sample.devices]


def test_processes_beside_the_engine_s_on_its_device_are_counted() -> None:
    assert beside(os.getpid()) == [0]
    assert beside(os.getpid(), 1, 2) == [2]


def test_where_the_engine_is_not_seen_on_a_device_nothing_is_said_about_others() -> None:
    assert beside(1, 2) == [None], "another device, or pids of another namespace"
    assert beside() == [None]
    nvml = FakeNvml("A", nvmlDeviceGetComputeRunningProcesses=fails(NOT_SUPPORTED))
    reading = Accelerators(nvml=nvml).read()
    assert sample_machine(reading, os.getpid(), "base").devices[0].other_processes is None
    assert reading.problem == ""


# ---- the machine


def test_the_machine_is_read_with_or_without_an_engine() -> None:
    idle = sample_machine(DeviceReading([]), None, None)
    assert idle.host == socket.gethostname()
    assert idle.engine_rss_bytes is None
    assert idle.ram_total_bytes is not None
    assert idle.ram_available_bytes is not None
    assert 0 < idle.ram_available_bytes <= idle.ram_total_bytes
    assert sample_machine(DeviceReading([], unified=True), os.getpid(), "base").stage == "base"


def test_an_engine_s_memory_is_that_of_its_whole_tree() -> None:
    code = "import os, time; b = bytearray(64 << 20); os.fork(); os.write(1, b'up\\n'); time.sleep(600)"
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    assert [engine.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    family = psutil.Process(engine.pid).children(recursive=True)
    rss = sample_machine(DeviceReading([]), engine.pid, "base").engine_rss_bytes
    assert rss is not None
    assert rss > psutil.Process(engine.pid).memory_info().rss
    for member in family:
        member.kill()
    engine.kill()
    engine.communicate()
    assert sample_machine(DeviceReading([]), engine.pid, "base").engine_rss_bytes is None, "gone is not zero"


def test_the_engine_s_share_of_the_cores_is_measured_between_two_readings() -> None:
    use = EngineUse()
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert use.read(spinning.pid, 0.0)[1] is None, "one reading has no interval"

        def share() -> float | None:
            return use.read(spinning.pid, time.monotonic())[1]

        assert wait_for(lambda: (share() or 0.0) > 0.0, "a share above zero")
        assert use.read(None, 0.0) == (None, None)
        assert use.read(spinning.pid, 1.0)[1] is None, "after another engine the interval begins again"
    finally:
        spinning.kill()
        spinning.wait()
