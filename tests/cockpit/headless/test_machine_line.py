"""The machine's line shows a load that was measured, or says that none was."""

from __future__ import annotations

from typing import NamedTuple

import psutil
import pytest

from cockpit.headless.machine_line import LOAD_S, MachineNow, _Load, words


class Times(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float
    guest: float


def test_a_load_is_measured_over_a_second_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, times = [100.0], [Times(10.0, 0.0, 90.0, 0.0, 4.0)]
    monkeypatch.setattr("cockpit.headless.machine_line.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr(psutil, "cpu_times", lambda: times[0])
    load = _Load()
    assert load.percent() is None, "one reading of the counters has no load"
    now_s[0] += LOAD_S / 10
    times[0] = Times(10.0, 0.0, 90.01, 0.0, 4.0)
    assert load.percent() is None, "a hundredth of a second later the counters would say 0%"
    now_s[0] += LOAD_S
    times[0] = Times(10.5, 0.5, 91.0, 0.0, 4.5)
    assert load.percent() == pytest.approx(50.0), "guest time is in user time already"
    now_s[0] += LOAD_S / 10
    assert load.percent() == pytest.approx(50.0), "a second reading at once has the value of the first"


def test_a_load_that_was_not_measured_is_not_zero() -> None:
    machine = MachineNow("spark-01", 8, None, 1 << 30, 2 << 30, None, ())
    assert words(machine)[1] == "cpu n/a of 8"
