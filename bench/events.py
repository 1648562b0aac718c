"""Measures the cost of an event for the training that emits it, and of reading and folding a journal."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from bench.rows import Row, best, cpu_s
from cockpit.runs.state import RunState
from engines.emitter import EventWriter
from engines.events.steps import Step
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from engines.words import WriterRole

EVENTS = 20_000
JOURNAL_EVENTS = 200_000


def _step(number: int) -> Step:
    return Step(
        stage="base",
        attempt=1,
        step=number,
        epoch=number / 1e5,
        loss=2.0 + 1.0 / number,
        learning_rate=3e-4,
        grad_norm=0.75,
        tokens=number * 8192,
        loss_tokens=number * 8192,
        step_s=0.0525,
        data_wait_s=0.0001,
    )


def _emit(folder: Path, count: int) -> list[float]:
    run = RunDir(folder)
    os.mkfifo(run.fifo)
    return emit_steps(run, count)


def emit_steps(run: RunDir, count: int) -> list[float]:
    """Seconds of each emit, ascending: encoded, written to the journal, copied into a pipe that no process reads."""
    writer = EventWriter(run.journal, run.fifo, role=WriterRole.ENGINE, stage="base", attempt=1)
    events = [_step(number) for number in range(1, count + 1)]
    taken = []
    for event in events:
        began = time.perf_counter()
        writer.emit(event)
        taken.append(time.perf_counter() - began)
    writer.close()
    return sorted(taken)


def measure() -> list[Row]:
    """Event cost, decode and fold rates."""
    costs = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            costs.append(_emit(Path(folder), EVENTS))
    p50 = min(cost[EVENTS // 2] for cost in costs)
    p99 = min(cost[EVENTS * 99 // 100] for cost in costs)
    with tempfile.TemporaryDirectory() as folder:
        _emit(Path(folder), JOURNAL_EVENTS)
        journal = RunDir(Path(folder)).journal
        decode_s = best(lambda: cpu_s(lambda: sum(1 for _ in read_journal(journal))))
        events = list(read_journal(journal))
    fold_s = best(lambda: cpu_s(lambda: RunState().apply_all(events)))
    how = f"{EVENTS} steps: encode, write to the journal, copy into the pipe"
    return [
        Row("event cost p50", p50 * 1e6, "µs", how),
        Row("event cost p99", p99 * 1e6, "µs", how),
        Row("journal decode", len(events) / decode_s, "events/s", f"{len(events)} records read and typed, CPU"),
        Row("fold", len(events) / fold_s, "events/s", f"{len(events)} events into RunState, CPU"),
    ]
