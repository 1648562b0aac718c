"""The bytes that a screen sends over SSH: none while nothing happens, few while a run trains."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engines.events import Step
from tests.tui import journals
from tests.tui.terminal import show_run

BYTES_PER_PICTURE = 2400
"""12 kB/s at five pictures a second, for a whole 160x48 screen with six charts."""


@pytest.fixture
def live_run(tmp_path: Path) -> Path:
    """A run directory whose supervisor lock is held, as in a live run."""
    run = journals.live(412).write(tmp_path / "20261120-2130-atlas")
    lock = os.open(run / "supervisor.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return run


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
def test_an_idle_screen_sends_nothing_and_a_live_one_few_bytes(live_run: Path, size: tuple[int, int]) -> None:
    journal = journals.live(412)
    written = len(journal._lines)
    step = next(e for e in reversed(journal.events) if isinstance(e, Step))
    with show_run(live_run, size) as terminal:
        terminal.read_until(b"412/820")
        terminal.read_until_quiet(3.0)  # a screen that sends something now and then would never be quiet
        sent, pictures = 0, 20
        for number in range(413, 413 + pictures):
            fields = {f: getattr(step, f) for f in Step.__struct_fields__ if f not in {"v", "w", "seq", "t", "m"}}
            event = Step(**{**fields, "step": number, "tokens": number * 8192, "loss": 0.5 + 0.01 * (number % 7)})
            journal.say(step.w, event, 4.0)
            with (live_run / "journal.jsonl").open("ab", buffering=0) as file:
                file.write(journal._lines[written])
            written += 1
            sent += len(terminal.read_until(f"{number}".encode()))
        sent += len(terminal.read_until_quiet())
        assert sent / pictures < BYTES_PER_PICTURE


def test_the_screen_process_loads_no_training_stack() -> None:
    code = (
        "import sys, cockpit.tui.app, cockpit.tui.screens.run, cockpit.tui.screens.sources; "
        "print([m for m in ('numpy', 'torch', 'transformers', 'pandas', 'pydantic', 'rich.markdown') if m in "
        "sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_events_survive_the_wire() -> None:
    journal = journals.live(5)
    assert all(msgspec.structs.asdict(event)["v"] == 1 for event in journal.events)
