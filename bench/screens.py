"""Measures the screen: first paint compared with a bare Textual application, memory, and bytes sent over SSH."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.rows import Row, best, child_cpu_s
from cockpit.launching.launch import launch
from cockpit.launching.requests import send_request
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import Verb
from recipes.load import load_recipe_text
from tests.tui.terminal import Terminal

SIZE = (160, 48)
SECONDS = 10.0
BARE = """
from textual.app import App
from textual.widgets import Static
class Bare(App):
    def compose(self):
        yield Static("bare")
Bare().run()
"""
LIVE = """
schema = 1
name = "bench"
[[stage]]
name = "live"
kind = "fake"
max_steps = 2000
step_s = 0.1
save_steps = 500
"""


def measure() -> list[Row]:
    """First paint, memory, bytes per second of the Run screen, and the start of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        home = [sys.executable, "-m", "cockpit", "--runs-dir", folder]
        bare = [sys.executable, "-c", BARE]
        bare_s, home_s, resident = [], [], []
        for _ in range(5):  # interleaved: both see the same noise
            bare_s.append(_paint_s(bare, b"bare"))
            with Terminal(home, SIZE) as terminal:
                home_s.append(terminal.seconds_until(b"Recipes"))
                terminal.drain(1.0)
                resident.append(terminal.resident_bytes())
        rows = [
            Row("first paint", min(home_s), "s", "exec to the first text of Home, 160x48"),
            Row("first paint, bare Textual", min(bare_s), "s", "only a Static, in the same run"),
            Row("first paint, ratio", min(home_s) / min(bare_s), "x", "cockpit / bare"),
            Row("screen's memory", min(resident) / 2**20, "MiB", "resident, Home, 1 s after the first paint"),
        ]
        rows += _live_rows(Path(folder))
    help_s = best(lambda: child_cpu_s([sys.executable, "-m", "cockpit", "--help"]))
    return [*rows, Row("cockpit --help", help_s, "s CPU", "user and system")]


def _paint_s(argv: list[str], wanted: bytes) -> float:
    with Terminal(argv, SIZE) as terminal:
        return terminal.seconds_until(wanted)


def _live_rows(folder: Path) -> list[Row]:
    """The Run screen on a live run with ten steps per second, repainted at 5 Hz."""
    run = launch(load_recipe_text(LIVE, folder / "bench.toml"), runs_root=folder)
    try:
        with Terminal([sys.executable, "-m", "cockpit", "attach", run.id, "--runs-dir", str(folder)], SIZE) as terminal:
            terminal.read_until(b"grad_norm")
            terminal.drain(3.0)
            before_s, began_s = terminal.cpu_s(), time.monotonic()
            sent = terminal.drain(SECONDS)
            wall_s = time.monotonic() - began_s
            cpu = (terminal.cpu_s() - before_s) / wall_s
            resident = terminal.resident_bytes()
    finally:
        send_request(run, Verb.STOP)
        _until_free(run)
    return [
        Row("Run screen, bytes sent", sent / wall_s, "bytes/s", f"160x48, live, 5 Hz, over {SECONDS:g} s"),
        Row("Run screen, CPU", cpu * 100, "%", "of one core, the same seconds"),
        Row("Run screen, memory", resident / 2**20, "MiB", "resident, the same process"),
    ]


def _until_free(run: RunDir) -> None:
    """Wait for the run's processes: after their folder is removed, no request reaches them."""
    give_up_s = time.monotonic() + 30.0
    while lock_is_held(run.supervisor_lock) and time.monotonic() < give_up_s:
        time.sleep(0.05)
