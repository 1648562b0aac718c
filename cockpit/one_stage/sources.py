"""The finished results and checkpoints of a run that still exist, for the buttons and commands that use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cockpit.one_stage.recipe import Input
from cockpit.runs.stage_view import StageView
from engines.artifacts.adapter_folder import is_adapter
from engines.events.steps import CheckpointCommitted
from engines.run_dir.paths import RunDir
from recipes.stages.registry import trains, weights


@dataclass(frozen=True)
class Source:
    """A finished result or a checkpoint that can be merged or exported.

    `path` is its folder, `manifest_sha256` its identity; `step` is None for the finished result.
    """

    kind: Literal["model", "adapter"]
    stage: str
    path: Path
    manifest_sha256: str
    step: int | None = None
    attempt: int | None = None

    @property
    def title(self) -> str:
        """`tuned (result)` or `tuned (step 400)`."""
        return f"{self.stage} ({'result' if self.step is None else f'step {self.step}'})"

    @property
    def input(self) -> Input:
        """The input that a recipe names."""
        return Input.at(self.path, self.manifest_sha256)


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint of a run, which may have been removed."""

    stage: str
    kind: str
    checkpoint: CheckpointCommitted
    removed: bool
    eval_loss: float | None
    superseded: bool = False
    best: bool = False


@dataclass(frozen=True)
class Item:
    """One line of the checkpoints screen: a finished result (`row` is None) or a checkpoint."""

    stage: str
    kind: str
    row: CheckpointRow | None
    source: Source | None
    newest: bool = False


def checkpoint_rows(stages: Sequence[StageView], run: RunDir | None = None) -> list[CheckpointRow]:
    """Every checkpoint of the training stages, newest stage and step first.

    With `run`, one whose folder is not there counts as removed too: `prune` writes nothing into the journal.
    """
    rows = []
    for stage in reversed(stages):
        if not trains(stage.kind):
            continue
        losses = {e.step: e.loss for e in stage.all_evaluations}
        kept = {id(c) for c in stage.checkpoints}
        counted = {attempt.attempt: cut for attempt, cut in stage.lineage}
        everything = sorted(stage.all_checkpoints, key=lambda c: (c.attempt, c.step), reverse=True)
        rows += [
            CheckpointRow(
                stage.name,
                stage.kind,
                checkpoint,
                removed=id(checkpoint) not in kept or (run is not None and not (run.root / checkpoint.path).is_dir()),
                eval_loss=losses.get(checkpoint.step, checkpoint.loss),
                superseded=checkpoint.step > counted.get(checkpoint.attempt, -1),
                best=checkpoint is stage.best_checkpoint,
            )
            for checkpoint in everything
        ]
    return rows


def sources(run: RunDir, stages: Sequence[StageView]) -> list[Source]:
    """Finished results and checkpoints that exist, the last stage first, its finished result first."""
    found = []
    for stage in reversed(stages):
        kinds = weights(stage.kind)
        if not kinds:
            continue
        if stage.state.is_done and run.out(stage.name).is_dir():
            kind = _weights_in(run.out(stage.name), kinds)
            found.append(Source(kind, stage.name, run.out(stage.name), stage.manifest_sha256))
        for row in checkpoint_rows([stage], run):
            checkpoint = row.checkpoint
            path = run.root / checkpoint.path
            if not row.removed and path.is_dir():
                kind = _weights_in(path, kinds)
                found.append(Source(kind, stage.name, path, checkpoint.sha256, checkpoint.step, checkpoint.attempt))
    return found


def _weights_in(folder: Path, kinds: Sequence[Literal["model", "adapter"]]) -> Literal["model", "adapter"]:
    """The weights in a folder of a stage, of those that its kind can have."""
    if len(kinds) == 1:
        return kinds[0]
    return "model" if (folder / "config.json").is_file() and not is_adapter(folder) else "adapter"


def source_of(found: Sequence[Source], row: CheckpointRow | None, kind: str) -> Source | None:
    """The source for a button: the chosen checkpoint if it is of that kind, else the newest finished result."""
    if row is not None:
        chosen = row.checkpoint
        for source in found:
            if (source.kind, source.stage, source.step, source.attempt) == (
                kind,
                row.stage,
                chosen.step,
                chosen.attempt,
            ):
                return source
    finished = [source for source in found if source.kind == kind and source.step is None]
    return finished[0] if finished else None


def items(run: RunDir, stages: Sequence[StageView]) -> list[Item]:
    """Finished results and all checkpoints, the last stage first, newest first within a stage."""
    found = sources(run, stages)
    listed: list[Item] = []
    for stage in reversed(stages):
        listed += [Item(stage.name, s.kind, None, s) for s in found if s.stage == stage.name and s.step is None]
        newest_seen = False
        by_checkpoint = {(s.step, s.attempt): s for s in found if s.stage == stage.name and s.step is not None}
        for row in checkpoint_rows([stage], run):
            source = by_checkpoint.get((row.checkpoint.step, row.checkpoint.attempt))
            newest = not newest_seen and not row.removed and not row.superseded
            newest_seen = newest_seen or newest
            listed.append(Item(stage.name, stage.kind, row, source, newest))
    return listed
