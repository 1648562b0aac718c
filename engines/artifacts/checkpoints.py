"""Checkpoints of a stage: which are complete, which one is the best, and which may be removed.

A checkpoint is a folder `stages/<stage>/<attempt>/checkpoints/step-<n>` with a manifest. The manifest, not the name,
makes a checkpoint complete. This module deletes nothing that may be needed: `which_to_remove` is pure, removal renames
first, and refused folders stay in place.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256, read_manifest, verify_manifest
from engines.run_dir.paths import attempt_folders, checkpoint_step, checkpoints_of

_DRAFT = ".tmp-"
_TRASH = ".trash-"

Refused = tuple[Path, str]


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint. `sha256` is that of its manifest; `best`: it was the best one when it was written."""

    attempt: int
    step: int
    path: Path
    sha256: str
    healthy: bool
    best: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    position: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def eval_loss(self) -> float | None:
        """Loss on the val split at this step, in nats per token; None when it was not measured or is not finite."""
        value = self.metrics.get("eval_loss")
        return value if isinstance(value, int | float) and math.isfinite(value) else None

    @property
    def judged(self) -> float | None:
        """The value of which the best checkpoint has the lowest: the evaluation loss, or what the training's
        `metric_for_best_model` says, with its sign changed where greater is better. None when it was not measured."""
        other = self.position.get("judged")
        if not isinstance(other, Mapping):
            return self.eval_loss
        value = other.get("value")
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return -value if other.get("greater_is_better") is True else value


def scan(stage_dir: Path) -> tuple[list[Checkpoint], list[Refused]]:
    """Every checkpoint of a stage's attempts: the complete ones by attempt and step, and the refused ones with reasons.

    Sizes are compared, hashes are not: the caller verifies the checkpoint that it resumes from.

    Args:
        stage_dir: `stages/<stage>` of a run.
    """
    complete: list[Checkpoint] = []
    refused: list[Refused] = []
    for folder in attempt_folders(stage_dir):
        if folder.is_symlink():
            continue
        found, bad = scan_attempt(checkpoints_of(folder))
        complete += found
        refused += bad
    return sorted(complete, key=lambda checkpoint: (checkpoint.attempt, checkpoint.step)), refused


def scan_attempt(checkpoints: Path) -> tuple[list[Checkpoint], list[Refused]]:
    """The same for the `checkpoints` folder of one attempt."""
    complete: list[Checkpoint] = []
    refused: list[Refused] = []
    attempt = int(checkpoints.parent.name) if checkpoints.parent.name.isdigit() else 0
    for folder in _entries(checkpoints):
        step = checkpoint_step(folder.name)
        if step is None:
            if folder.name.startswith(_DRAFT):
                refused.append((folder, "was not finished: it still has its temporary name"))
            continue
        try:
            complete.append(_read(folder, attempt, step))
        except ManifestError as error:
            refused.append((folder, str(error)))
    return sorted(complete, key=lambda checkpoint: checkpoint.step), refused


def which_to_remove(checkpoints: Iterable[Checkpoint], save_total_limit: int) -> list[Checkpoint]:
    """Complete checkpoints of one lineage that may be removed, oldest first.

    It keeps the newest `save_total_limit` (at least one), the best one, and the newest healthy one.
    """
    ordered = sorted(checkpoints, key=lambda checkpoint: (checkpoint.step, checkpoint.attempt))
    kept = set(ordered[-max(1, save_total_limit) :])
    healthy = [checkpoint for checkpoint in ordered if checkpoint.healthy]
    if healthy:
        kept.add(healthy[-1])
    best = current_best(ordered)
    if best is not None:
        kept.add(best)
    return [checkpoint for checkpoint in ordered if checkpoint not in kept]


def current_best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The best checkpoint by what its training judges by, usually the lowest evaluation loss (the newer of two equals);
    without any evaluation, the newest one marked as best."""
    ordered = sorted(checkpoints, key=lambda checkpoint: (checkpoint.step, checkpoint.attempt))
    measured = [(checkpoint.judged, checkpoint) for checkpoint in ordered if checkpoint.judged is not None]
    if measured:
        lowest = min(loss for loss, _ in measured)
        return next(checkpoint for loss, checkpoint in reversed(measured) if loss == lowest)
    return next((checkpoint for checkpoint in reversed(ordered) if checkpoint.best), None)


def draft_of(checkpoint: Path) -> Path:
    """The folder in which a checkpoint is written before its rename; a new name at every call."""
    return checkpoint.with_name(f"{_DRAFT}{checkpoint.name}-{os.urandom(4).hex()}")


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Delete a checkpoint. It is renamed first, so that a partly deleted one never looks complete."""
    trash = checkpoint.path.with_name(f"{_TRASH}{checkpoint.path.name}-{os.urandom(4).hex()}")
    try:
        checkpoint.path.rename(trash)
    except FileNotFoundError:
        return
    shutil.rmtree(trash, ignore_errors=True)


def clean_leftovers(checkpoints: Path) -> list[str]:
    """Delete partly written and partly deleted folders of a dead engine in an attempt's `checkpoints`; returns names.

    No other engine may be writing into the folder.
    """
    names = []
    for folder in _entries(checkpoints):
        if folder.name.startswith((_DRAFT, _TRASH)):
            shutil.rmtree(folder, ignore_errors=True)
            names.append(folder.name)
    return names


def _read(folder: Path, attempt: int, step: int) -> Checkpoint:
    sha256 = manifest_sha256(folder)
    manifest = read_manifest(folder)
    if manifest.get("step") != step:
        raise ManifestError(f"{MANIFEST} is for step {manifest.get('step')!r}, the folder for step {step}")
    problems = verify_manifest(folder, hashes=False)
    if problems:
        raise ManifestError("; ".join(problems))
    metrics = manifest.get("metrics")
    position = manifest.get("position")
    return Checkpoint(
        attempt=attempt,
        step=step,
        path=folder,
        sha256=sha256,
        healthy=manifest.get("healthy") is True,
        best=manifest.get("best") is True,
        metrics={
            name: float(value)
            for name, value in (metrics.items() if isinstance(metrics, dict) else ())
            if isinstance(value, int | float) and not isinstance(value, bool)
        },
        position=position if isinstance(position, dict) else {},
    )


def _entries(folder: Path) -> list[Path]:
    found: list[Path] = []
    with suppress(OSError), os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(found)
