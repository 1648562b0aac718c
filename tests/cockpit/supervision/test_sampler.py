from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from engines.events.kinds import AnyEvent
from engines.events.machine import MachineSampled
from engines.events.writers import Warned, WriterOpened
from engines.identity import Identity
from engines.journal import read_journal
from tests.cockpit.supervision.fake_nvml import CRASHES
from tests.patience import PATIENCE_S
from tests.runs.harness import (
    assert_no_process_left,
    end_soon,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    nothing_left,
    state,
    wait_for,
    wait_for_end,
)

ROOT = Path(__file__).resolve().parents[3]
HANGS = "import time\n\ndef nvmlInit():\n    time.sleep(3600)\n"
GB10 = """
from types import SimpleNamespace
class NVMLError_NotSupported(Exception): pass
def no(*_): raise NVMLError_NotSupported("Not Supported")
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetName(h): return "NVIDIA GB10"
def nvmlDeviceGetUtilizationRates(h): return SimpleNamespace(gpu=42)
nvmlDeviceGetMemoryInfo = nvmlDeviceGetTemperature = nvmlDeviceGetPowerUsage = no
"""


def with_nvml(folder: Path, text: str) -> str:
    """A folder for PYTHONPATH in which `pynvml` is this text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pynvml.py").write_text(text)
    return os.pathsep.join([str(folder), str(ROOT)])


@contextmanager
def sampler(run: Path, pythonpath: str, *options: str, interval_s: float = 0.02) -> Iterator[subprocess.Popen[str]]:
    run.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-m", "cockpit.supervision.sampler", str(run), str(interval_s), *options],
        stdin=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": pythonpath},
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def events_of(run: Path) -> list[AnyEvent]:
    journal = run / "journal.jsonl"
    return list(read_journal(journal)) if journal.exists() else []


def samples(run: Path) -> list[MachineSampled]:
    return [event for event in events_of(run) if isinstance(event, MachineSampled)]


def any_sample(run: Path, after: int, fact: Callable[[MachineSampled], object]) -> bool:
    return any(fact(sample) for sample in samples(run)[after:])


def test_it_samples_until_its_input_ends(tmp_path: Path) -> None:
    with sampler(tmp_path / "run", str(ROOT), "--no-nvml") as child:
        wait_for(lambda: len(samples(tmp_path / "run")) >= 3, "three samples")
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(PATIENCE_S) == 0
    opened = events_of(tmp_path / "run")[0]
    assert isinstance(opened, WriterOpened)
    assert opened.role == "sampler"


def test_it_exits_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "cockpit.supervision.sampler", {str(tmp_path)!r}, "0.02", "--no-nvml"],
                         stdin=subprocess.PIPE, cwd={str(ROOT)!r})
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    sampler = Identity.of(int(parent.stdout.readline()))
    assert sampler is not None
    wait_for(lambda: samples(tmp_path), "a sample")
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: not sampler.is_alive(), "its end")


def test_its_input_names_the_engine_and_garbage_names_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with sampler(run, str(ROOT), "--no-nvml") as child:
        assert child.stdin is not None
        heard: list[tuple[str, Callable[[MachineSampled], object]]] = [
            (f"{os.getpid()} base\n", lambda s: s.stage == "base" and s.engine_rss_bytes),
            ("\n", lambda s: s.stage is None and s.engine_rss_bytes is None),
            (f"{os.getpid()} ba", lambda s: s.stage is None),
            ("se-2\n", lambda s: s.stage == "base-2"),
            ("rubbish\n-5 x\n", lambda s: s.stage is None),
            ("99999999 gone\n", lambda s: s.stage == "gone" and s.engine_rss_bytes is None),
        ]
        for text, fact in heard:
            before = len(samples(run))
            child.stdin.write(text)
            child.stdin.flush()
            wait_for(partial(any_sample, run, before, fact), f"{text!r} to be heard")
        assert child.poll() is None


def test_the_unified_memory_of_a_gb10_is_one_pool(tmp_path: Path) -> None:
    with sampler(tmp_path / "run", with_nvml(tmp_path / "fake", GB10)):
        sample = wait_for(lambda: samples(tmp_path / "run"), "a sample")[0]
    assert sample.unified
    (device,) = sample.devices
    assert device.util_percent == 42.0
    assert device.memory_total_bytes == sample.ram_total_bytes
    assert (device.temperature_c, device.power_w) == (None, None)
    assert not [event for event in events_of(tmp_path / "run") if isinstance(event, Warned)]


def test_a_hanging_driver_is_reported_once_and_sampling_continues(tmp_path: Path) -> None:
    fake = with_nvml(tmp_path / "fake", HANGS)
    code = (
        "import sys, cockpit.supervision.machine; "
        "cockpit.supervision.machine.Accelerators.__init__.__kwdefaults__['timeout_s'] = 0.05;"
        "from cockpit.supervision.sampler import main; sys.exit(main(sys.argv))"
    )
    run = tmp_path / "run"
    run.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(run), "0.02"],
        stdin=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": fake},
    )  # fmt: skip
    wait_for(lambda: len(samples(run)) >= 5, "five samples")
    warnings = [event.message for event in events_of(run) if isinstance(event, Warned)]
    assert len(warnings) <= 2
    assert "did not respond" in warnings[0]
    assert all(sample.devices == [] and sample.ram_total_bytes for sample in samples(run))
    child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, "a hung driver does not keep it from going"


def test_after_three_crashes_the_sampler_runs_without_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", with_nvml(tmp_path / "fake", CRASHES))
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.05}, sample_interval_s=0.1), tmp_path)
        wait_for(lambda: any(isinstance(e, MachineSampled) for e in events(run)), "a sample, after three crashes")
        warnings = [e.message for e in events(run) if isinstance(e, Warned)]
        deaths = [text for text in warnings if "sampler exited with status -6" in text]
        assert len(deaths) == 3
        assert "without GPU telemetry" in deaths[-1]
        assert sum(isinstance(e, WriterOpened) and e.role == "sampler" for e in events(run)) == 4
        stage = state(run).stage("part-1")
        assert stage is not None
        assert len(stage.attempts) == 1, "training noticed nothing"
        kill_supervisor(run)


def test_a_run_s_sampler_ends_with_it(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.01}, sample_interval_s=0.1), tmp_path)
        wait_for(lambda: any(isinstance(e, MachineSampled) for e in events(run)), "a sample")
        end_soon(run)
        assert wait_for_end(run) == "succeeded"
        (opened,) = [e for e in events(run) if isinstance(e, WriterOpened) and e.role == "sampler"]
        wait_for(lambda: not Path(f"/proc/{opened.pid}").exists(), "the sampler's end")
        assert_no_process_left(run)
