"""Measures the cost of reading a run: once, in a list with a preview, and by a screen that attaches to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.events import JOURNAL_EVENTS, emit_steps
from bench.rows import Row, best, cpu_s
from cockpit.runs.reader import read_now
from cockpit.runs.watch import RunWatch
from cockpit.tui.screens.sources import LiveSource
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir


def measure() -> list[Row]:
    """CPU time of one complete read, and of Home and a run's screen as multiples of it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = create_run_dir(root, name="b", recipe="b", recipe_toml="", recipe_json={}, plan_json={}, version="0")
        emit_steps(run, JOURNAL_EVENTS)
        once_s = best(lambda: cpu_s(lambda: read_now(run)))
        home_s = best(lambda: cpu_s(lambda: _home(root, run)))
        attach_s = best(lambda: cpu_s(lambda: _attach(run)))
    how = f"{JOURNAL_EVENTS} steps, CPU"
    return [
        Row("run read once", JOURNAL_EVENTS / once_s, "events/s", f"read, typed and folded; {how}"),
        Row("Home, ratio", home_s / once_s, "x", "list, preview and the next list / read once: 1 means no second read"),
        Row("Run screen's attach, ratio", attach_s / once_s, "x", "in its batches, with the live stream / read once"),
    ]


def _home(root: Path, run: RunDir) -> None:
    watch = RunWatch(root)
    watch.poll()
    with watch.reading(run.id) as reader:
        reader.state.machine()
    watch.poll()


def _attach(run: RunDir) -> None:
    source = LiveSource(run.root)
    source.poll()
    while source.catching_up:
        source.poll()
    source.close()
