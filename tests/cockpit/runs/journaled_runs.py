"""Run directories whose journal the test process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cockpit.provenance.mark import RunMark
from cockpit.provenance.trust import seal
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.runs import RunEnded, RunStarted, StageStarted
from engines.events.steps import Step
from engines.identity import Identity
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import EndReason, RunStatus, StartReason, WriterRole


def a_run(root: Path, name: str = "atlas") -> RunDir:
    """A trusted run without records."""
    return create_run_dir(
        root, name=name, recipe=name, recipe_toml="", recipe_json={}, plan_json={}, version="1", seal=seal
    )


def write_journal(run: RunDir, end: str | None = "succeeded", *, role: str = "supervisor", steps: int = 2) -> None:
    """Write the records of a run with one stage, as this process."""
    writer = EventWriter(run.journal, None, role=WriterRole(role), stage="base", attempt=1)
    writer.emit(RunStarted(run=run.id, recipe="atlas", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"]))
    writer.emit(StageStarted(stage="base", kind="fake", attempt=1, steps=2 * steps))
    writer.emit(AttemptStarted(stage="base", kind="fake", attempt=1, total_steps=2 * steps))
    for number in range(1, steps + 1):
        writer.emit(
            Step(
                stage="base",
                attempt=1,
                step=number,
                epoch=0.1,
                loss=3.0 - number,
                learning_rate=1e-4,
                grad_norm=1.0,
                tokens=512 * number,
                loss_tokens=500,
                step_s=0.05,
            )
        )
    if end is not None:
        writer.emit(AttemptEnded(stage="base", attempt=1, reason=EndReason(end)))
        writer.emit(RunEnded(state=RunStatus(end), reason="because"))
    writer.close()


@contextmanager
def engine_of(run: RunDir, *, marked: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A living process that the run's files name as the engine of its first attempt, with the run's mark or without."""
    environment = {**os.environ, **(RunMark.of(run).environment() if marked else {})}
    child = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert child.stdout is not None
    child.stdout.readline()  # until then, the kernel may not show its environment yet
    identity = Identity.of(child.pid)
    assert identity is not None
    run.attempt_dir("base", 1).mkdir(parents=True, exist_ok=True)
    run.engine_json("base", 1).write_text(json.dumps(vars(identity)))
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@contextmanager
def stopped_process(*words: str) -> Iterator[Identity]:
    """A process with these words in its command line, stopped."""
    program = [sys.executable, "-c", "import os; os.kill(os.getpid(), 19); input()", *words]
    child = subprocess.Popen(program, stdin=subprocess.PIPE)
    try:
        os.waitpid(child.pid, os.WUNTRACED)
        identity = Identity.of(child.pid)
        assert identity is not None
        yield identity
    finally:
        child.kill()
        child.communicate()
