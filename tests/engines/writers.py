"""Event writers for tests, and their records."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from engines.emitter import EventWriter
from engines.events.kinds import AnyEvent
from engines.events.steps import Step
from engines.events.writers import Gap
from engines.journal import read_journal
from engines.words import WriterRole


def step(number: int, **fields: Any) -> Step:
    values: dict[str, Any] = {
        "stage": "base", "attempt": 1, "epoch": 0.1, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.0,
        "tokens": 512,
        "loss_tokens": 500, "step_s": 0.05,
    }  # fmt: skip
    return Step(step=number, **{**values, **fields})


def writer_for(folder: Path, fifo: bool = False) -> EventWriter:
    pipe = folder / "live.fifo"
    if fifo and not pipe.exists():
        os.mkfifo(pipe)
    return EventWriter(folder / "journal.jsonl", pipe, role=WriterRole.ENGINE, stage="base", attempt=1)


def read(folder: Path) -> list[AnyEvent]:
    return list(read_journal(folder / "journal.jsonl"))


def in_a_process(code: str, *argv: str) -> None:
    """Run Python in a separate process, because limits and forks affect the entire process."""
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def account(found: list[AnyEvent]) -> tuple[int, int]:
    """Of one writer's records: how many numbers are missing, and how many records its gaps call lost."""
    numbers = [event.seq for event in found]
    assert numbers == sorted(set(numbers)), "in order, without duplicates"
    return numbers[-1] + 1 - len(numbers), sum(event.lost for event in found if isinstance(event, Gap))
