"""Pruning: checkpoints that nothing needs, and outputs that a rerun replaced.

Kept are: the best checkpoint of a training, its newest healthy one, the newest one of a training that is not finished,
every checkpoint from which an attempt was resumed, and everything that another artifact was made from or that a recipe
names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cockpit.keeping.hold import held, remove_below, require_known_format
from cockpit.keeping.sizes import folder_bytes
from cockpit.keeping.uses import Uses
from cockpit.schedule.facts import RunFacts, StageFacts, read_facts
from engines.artifacts.checkpoints import Checkpoint, current_best, scan
from engines.artifacts.manifest import ManifestError, manifest_sha256
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError


@dataclass(frozen=True)
class Removal:
    """A folder that can be removed, its size, and why it is not needed."""

    run: RunDir
    path: Path
    bytes: int
    why: str


def removals(run: RunDir, uses: Uses) -> list[Removal]:
    """What can be removed from a run, by stage.

    Args:
        run: a run that is not live.
        uses: of the whole folder of runs, this run included.

    Raises:
        OperatorError: the run is of a newer format.
    """
    require_known_format(run)
    facts = read_facts(run)
    found: list[Removal] = []
    for stage_dir in map(run.stage_dir, run.stage_names()):
        if not stage_dir.is_symlink():
            found += _checkpoints(run, stage_dir, facts, uses)
            found += _replaced(run, stage_dir.name, uses)
    return found


def remove(run: RunDir, wanted: list[Removal], uses: Uses) -> list[Removal]:
    """Remove what was listed and can still be removed, while the run is held; returns what was removed.

    Raises:
        OperatorError: the run is live, belongs to another user, or a folder cannot be removed.
    """
    done: list[Removal] = []
    with held(run) as folder:
        still = {removal.path for removal in removals(run, uses)}
        for removal in wanted:
            if removal.path not in still:
                continue
            try:
                remove_below(folder, removal.path.relative_to(run.root).parts)
            except OSError as error:
                raise OperatorError(f"{removal.path} could not be removed: {error.strerror or error}") from error
            done.append(removal)
    return done


def _checkpoints(run: RunDir, stage_dir: Path, facts: RunFacts, uses: Uses) -> Iterator[Removal]:
    stage = facts.stage(stage_dir.name)
    complete, _ = scan(stage_dir)
    kept = _needed(complete, stage, finished=run.out(stage_dir.name).is_dir())
    for checkpoint in complete:
        if checkpoint.path.parent.is_symlink() or checkpoint.path.parent.parent.is_symlink():
            continue  # not the run's own folder
        if checkpoint.sha256 not in kept and not uses.of(checkpoint.sha256, checkpoint.path):
            why = "an older checkpoint" if _is_own(checkpoint, stage) else "replaced by a later attempt"
            yield Removal(run, checkpoint.path, folder_bytes(checkpoint.path), why)


def _needed(complete: list[Checkpoint], stage: StageFacts, *, finished: bool) -> set[str]:
    own = sorted((c for c in complete if _is_own(c, stage)), key=lambda c: (c.step, c.attempt))
    kept = {
        attempt.started.resumed_from.sha256
        for attempt in stage.attempts.values()
        if attempt.started and attempt.started.resumed_from
    }
    kept |= {c.sha256 for c in own[-1:] if not finished}
    kept |= {c.sha256 for c in [c for c in own if c.healthy][-1:]}
    best = current_best(own)
    return kept | ({best.sha256} if best is not None else set())


def _is_own(checkpoint: Checkpoint, stage: StageFacts) -> bool:
    """Whether it belongs to the training's present line."""
    lineage = stage.lineage()
    cap = lineage.get(checkpoint.attempt)
    return checkpoint.attempt in lineage and (cap is None or checkpoint.step <= cap)


def _replaced(run: RunDir, stage: str, uses: Uses) -> Iterator[Removal]:
    for out in run.replaced_outs(stage):
        if not out.is_dir() or out.is_symlink():
            continue
        sha256 = ""
        with suppress(ManifestError):
            sha256 = manifest_sha256(out)
        if not uses.of(sha256, out):
            yield Removal(run, out, folder_bytes(out), "an output that a rerun replaced")
