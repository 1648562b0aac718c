"""Commit the output of a stage: hash it, rename it into place, and record where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.artifacts.custody import Parent, custody_of
from engines.artifacts.delivery import deliver
from engines.artifacts.manifest import commit_folder, read_manifest, write_manifest
from engines.context import StageContext, StageResult
from engines.events.results import ArtifactCommitted
from engines.events.runs import StageSucceeded
from engines.run_dir.paths import RunDir, checkpoint_name
from recipes.problems import OperatorError, printable
from recipes.stages.fields import FilesFields, StageFields
from recipes.stages.registry import row_of


def commit_output(
    ctx: StageContext[StageFields], result: StageResult, metrics: dict[str, float | None], *, refused: str
) -> None:
    """Make `out/` durable, rename it into place, and write the events. The output of a refused stage stays in the
    attempt's folder for inspection."""
    run = RunDir(ctx.run_root)
    parents = [item.manifest_sha256 for item in ctx.inputs.values() if item.manifest_sha256]
    ctx.phase("saving")
    sha256 = write_manifest(
        ctx.out,
        run=ctx.run_id,
        stage=ctx.stage_name,
        kind=ctx.stage.kind,
        attempt=ctx.attempt,
        fingerprint=ctx.fingerprint,
        parents=parents,
        custody=_custody(ctx, metrics),
        metrics={name: value for name, value in metrics.items() if value is not None},
        artifacts=[vars(artifact) for artifact in result.artifacts],
    )
    final = run.refused_out(ctx.stage_name, ctx.attempt) if refused else run.out(ctx.stage_name)
    commit_folder(ctx.out, final)
    if not refused:
        _deliver(ctx, final)
    hashes = {entry["path"]: entry for entry in read_manifest(final)["files"]}
    for artifact in result.artifacts:
        path = final / artifact.path
        entry = hashes.get(artifact.path)
        ctx.emit(
            ArtifactCommitted(
                stage=ctx.stage_name,
                attempt=ctx.attempt,
                name=artifact.name,
                kind=artifact.kind,
                path=run.relative(path if artifact.path != "." else final),
                bytes=entry["bytes"] if entry else sum(item["bytes"] for item in hashes.values()),
                sha256=entry["sha256"] if entry else sha256,
                parents=parents,
            )
        )
    if not refused:
        ctx.emit(
            StageSucceeded(
                stage=ctx.stage_name,
                attempt=ctx.attempt,
                fingerprint=ctx.fingerprint,
                manifest_sha256=sha256,
                metrics=metrics,
            )
        )


def _deliver(ctx: StageContext[StageFields], final: Path) -> None:
    """Place the files into the folder that the recipe names, if it names one.

    Raises:
        OperatorError: files of these names are there.
    """
    if isinstance(ctx.stage, FilesFields) and ctx.stage.output_dir is not None:
        ctx.phase(f"placing files into {printable(ctx.stage.output_dir, 200)}")
        try:
            deliver(final, Path(ctx.stage.output_dir), overwrite=ctx.stage.overwrite_output_dir)
        except OperatorError as error:
            raise OperatorError(f"{error.message}; the finished files are in {final}", error.hint) from error


def parents_of(ctx: StageContext[Any]) -> list[Parent]:
    """The stage's inputs as links of its output; a folder without a manifest is identified by what was recorded."""
    return [
        Parent(item.name, item.path, item.manifest_sha256 or "", item.files)
        if item.method == "content"
        else Parent(item.name, item.path)
        for item in ctx.inputs.values()
    ]


def _custody(ctx: StageContext[StageFields], metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """The chain of custody of the stage's output; a training stage's weights are those of its last checkpoint."""
    steps = metrics.get("steps")
    checkpoint = None
    if row_of(ctx.stage).trains and steps is not None:
        here = ctx.checkpoints / checkpoint_name(int(steps))
        resumed = ctx.resume.path if ctx.resume is not None and ctx.resume.step == steps else None
        checkpoint = here if here.is_dir() else resumed
    custody = custody_of(parents_of(ctx), checkpoint)
    for item in ctx.inputs.values():
        if item.path is None or item.manifest_sha256 is None or item.method == "content":
            continue
        link = next((link for link in custody["ancestors"] if link["folder"] == str(item.path)), None)
        if link is not None and link["method"] == "name":
            ctx.warn(f"input {item.path} can no longer be read; the manifest of this stage lists it without a hash")
        elif link is not None and link["method"] == "manifest" and link["id"] != item.manifest_sha256:
            ctx.warn(f"input {item.path} was replaced while this stage was running")
    return custody
