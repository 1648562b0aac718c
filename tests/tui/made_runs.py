"""Run directories with real journals, made without starting a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.events.attempts import AttemptStarted
from engines.events.event import Event
from engines.events.records import encode_record
from engines.events.runs import RunEnded, RunStarted, StageStarted, StageSucceeded
from engines.events.steps import CheckpointCommitted, CheckpointRemoved, Step
from engines.events.writers import Warned, WriterOpened
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason, WriterRole

T0 = 1_795_000_000.0


def make_run(
    root: Path,
    name: str = "atlas",
    *,
    recipe: str | None = None,
    kind: str = "fake",
    steps: int = 40,
    state: str | None = "succeeded",
    checkpoints: Sequence[int] = (10, 20, 30, 40),
    removed: Sequence[int] = (10,),
    warning: str = "",
    recipe_toml: str = 'schema = 1\nname = "atlas"\n',
) -> RunDir:
    """A run of one stage `train`; with `state` None it has no end."""
    run = create_run_dir(
        root, name=name, recipe=recipe or name, recipe_toml=recipe_toml, recipe_json={}, plan_json={}, version="0"
    )
    engine: list[Event] = [
        WriterOpened(role=WriterRole.ENGINE, host="vm", boot_id="x", pid=1, start_time=1, stage="train", attempt=1),
        AttemptStarted(stage="train", kind=kind, attempt=1, total_steps=steps),
    ]
    for step in range(1, steps + 1):
        engine.append(_step(step))
        if step in checkpoints:
            folder = run.checkpoints("train", 1) / f"step-{step}"
            engine.append(_checkpoint(run, folder, step, best=step == max(checkpoints)))
            if step in removed:
                path = run.relative(folder)
                engine.append(CheckpointRemoved(stage="train", attempt=1, step=step, path=path, sha256=f"{step:064x}"))
            else:
                folder.mkdir(parents=True)
    if warning:
        engine.append(Warned(message=warning, stage="train", attempt=1))
    if state == "succeeded":
        engine.append(StageSucceeded(stage="train", attempt=1, fingerprint="f", manifest_sha256="a" * 64))
        run.out("train").mkdir(parents=True)
    supervisor: list[Event] = [
        WriterOpened(role=WriterRole.SUPERVISOR, host="vm", boot_id="x", pid=1, start_time=1),
        RunStarted(run=run.id, recipe=recipe or name, reason=StartReason.LAUNCH, stages=["train"], kinds=[kind]),
        StageStarted(stage="train", kind=kind, steps=steps),
    ]
    if state is not None:
        supervisor.append(RunEnded(state=RunStatus(state)))
    _write(run, "s", supervisor)
    _write(run, "e", engine)
    return run


def _step(step: int) -> Step:
    return Step(
        stage="train",
        attempt=1,
        step=step,
        epoch=step / 40,
        loss=4.0 - step / 20,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=step * 100,
        loss_tokens=step * 100,
        step_s=0.1,
    )


def _checkpoint(run: RunDir, folder: Path, step: int, best: bool) -> CheckpointCommitted:
    return CheckpointCommitted(
        stage="train",
        attempt=1,
        step=step,
        path=run.relative(folder),
        sha256=f"{step:064x}",
        healthy=True,
        best=best,
        bytes=4096,
        loss=3.0,
    )


def _write(run: RunDir, writer: str, events: Sequence[Event]) -> None:
    with run.journal.open("ab") as file:
        for seq, event in enumerate(events):
            file.write(encode_record(event, writer=writer, seq=seq, t=T0 + seq, m=float(seq)))
