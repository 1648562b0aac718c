"""Finished runs with real manifests, made without a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.artifacts.custody import Parent, custody_of
from engines.artifacts.manifest import manifest_sha256, write_manifest
from engines.events.attempts import AttemptStarted, ResumedFrom
from engines.events.event import Event
from engines.events.records import encode_record
from engines.events.runs import RunEnded, RunStarted, StageSucceeded
from engines.events.steps import CheckpointCommitted
from engines.events.writers import WriterOpened
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason, WriterRole

T0 = 1_795_000_000.0


def made_run(
    root: Path,
    name: str,
    *,
    steps: Sequence[int] = (),
    best: int | None = None,
    unhealthy: Sequence[int] = (),
    parents: Sequence[Path] = (),
    finished: bool = True,
    resumed_from: int | None = None,
) -> RunDir:
    """A run of one stage `train` with checkpoints and an output.

    Args:
        root: the folder of runs.
        name: the end of its id.
        steps: steps of the checkpoints.
        best: the step with the lowest loss.
        unhealthy: steps of checkpoints that are not healthy.
        parents: folders that the output was made from.
        finished: whether it has an output, and has succeeded.
        resumed_from: the step from which a second attempt was resumed.
    """
    run = create_run_dir(root, name=name, recipe=name, recipe_toml="", recipe_json={}, plan_json={}, version="0")
    engine: list[Event] = [
        WriterOpened(role=WriterRole.ENGINE, host="vm", boot_id="x", pid=1, start_time=1, stage="train", attempt=1),
        AttemptStarted(stage="train", kind="fake", attempt=1, total_steps=100),
    ]
    custody = custody_of([Parent(path.name, path) for path in parents])
    for step in steps:
        folder = run.checkpoint("train", 1, step)
        folder.mkdir(parents=True)
        (folder / "state.bin").write_bytes(b"x" * 1000)
        loss = 1.0 if step == best else 2.0
        sha256 = write_manifest(
            folder,
            run=run.id,
            stage="train",
            attempt=1,
            step=step,
            healthy=step not in unhealthy,
            custody=custody,
            metrics={"eval_loss": loss} if best is not None else {},
        )
        engine.append(
            CheckpointCommitted(
                stage="train", attempt=1, step=step, path=run.relative(folder), sha256=sha256, healthy=True, loss=loss
            )
        )
    more: list[Event] = []
    if resumed_from is not None:
        origin = ResumedFrom(
            attempt=1, step=resumed_from, sha256=manifest_sha256(run.checkpoint("train", 1, resumed_from))
        )
        more.append(AttemptStarted(stage="train", kind="fake", attempt=2, resumed_from=origin))
    if finished:
        output(run, "train", custody)
        engine.append(StageSucceeded(stage="train", attempt=1, fingerprint="f", manifest_sha256="a" * 64))
    state = RunStatus.SUCCEEDED if finished else RunStatus.STOPPED
    supervisor: list[Event] = [
        WriterOpened(role=WriterRole.SUPERVISOR, host="vm", boot_id="x", pid=1, start_time=1),
        RunStarted(run=run.id, recipe=name, reason=StartReason.LAUNCH, stages=["train"], kinds=["fake"]),
        RunEnded(state=state),
    ]
    with run.journal.open("ab") as journal:
        for writer, events in (("s", supervisor), ("e", engine), ("f", more)):
            for seq, event in enumerate(events):
                journal.write(encode_record(event, writer=writer, seq=seq, t=T0 + seq, m=seq))
    return run


def output(run: RunDir, stage: str, custody: dict[str, Any], name: str = "out", size: int = 500) -> Path:
    """A finished output, or one that a rerun replaced."""
    folder = run.stage_dir(stage) / name
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"w" * size + run.id.encode() + name.encode())
    write_manifest(folder, run=run.id, stage=stage, kind="fake", attempt=1, custody=custody)
    return folder
