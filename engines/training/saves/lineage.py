"""The checkpoints from which a training has come: which is the best of them, and which are removed."""

from __future__ import annotations

from typing import Any

from engines.artifacts.checkpoints import (
    Checkpoint,
    clean_leftovers,
    current_best,
    remove_checkpoint,
    scan,
    which_to_remove,
)
from engines.artifacts.manifest import read_manifest
from engines.context import StageContext
from engines.events.steps import CheckpointRemoved
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from recipes.stages.training import TrainingFields


class Lineage:
    """This attempt and those that it resumed from, with their checkpoints up to the step at which each was left.

    Attributes:
        ancestors: the attempts before this one, newest first, each with its last step.
    """

    def __init__(self, ctx: StageContext[TrainingFields]) -> None:
        self._ctx, self._run = ctx, RunDir(ctx.run_root)
        self.ancestors = _ancestors(ctx)

    def best(self) -> Checkpoint | None:
        """The best healthy checkpoint of the lineage."""
        return current_best(
            checkpoint for checkpoint in self._checkpoints() if checkpoint.healthy and checkpoint.judged is not None
        )

    def is_best(self, eval_loss: float | None, judged: Any) -> bool:
        """Whether a new healthy checkpoint with this loss, or judged by another metric, is the best one.

        Args:
            eval_loss: None where it was not measured.
            judged: `judged` of its `position`, None where `eval_loss` decides.
        """
        metrics = {} if eval_loss is None else {"eval_loss": eval_loss}
        new = Checkpoint(0, 0, self._ctx.work, "", healthy=True, metrics=metrics, position={"judged": judged}).judged
        best = current_best(self._checkpoints())
        return new is not None and (best is None or best.judged is None or new <= best.judged)

    def rotate(self) -> None:
        """Remove the checkpoints beyond `save_total_limit`, and report them."""
        for old in which_to_remove(self._checkpoints(), self._ctx.stage.save_total_limit):
            remove_checkpoint(old)
            self._ctx.emit(
                CheckpointRemoved(
                    stage=self._ctx.stage_name,
                    attempt=old.attempt,
                    step=old.step,
                    path=self._run.relative(old.path),
                    sha256=old.sha256,
                    healthy=old.healthy,
                    best=old.best,
                )
            )

    def clean(self) -> None:
        """Delete the partial checkpoints that dead engines of this stage left."""
        stage = self._ctx.stage_name
        for attempt in self._run.attempts(stage):
            if attempt == self._ctx.attempt or not lock_is_held(self._run.engine_lock(stage, attempt)):
                clean_leftovers(self._run.checkpoints(stage, attempt))

    def _checkpoints(self) -> list[Checkpoint]:
        """Complete checkpoints of the lineage. Later ones that a resume from an earlier step replaced are not in it."""
        last: dict[int, int | None] = {self._ctx.attempt: None, **dict(self.ancestors)}
        complete, _ = scan(self._run.stage_dir(self._ctx.stage_name))
        counted = [(checkpoint, last.get(checkpoint.attempt, -1)) for checkpoint in complete]
        return [checkpoint for checkpoint, limit in counted if limit is None or checkpoint.step <= limit]


def _ancestors(ctx: StageContext[TrainingFields]) -> list[tuple[int, int]]:
    if ctx.resume is None:
        return []
    older = read_manifest(ctx.resume.path).get("lineage") or []
    known = {ctx.resume.attempt, ctx.attempt}
    lineage = [(ctx.resume.attempt, ctx.resume.step)]
    for attempt, step in older:
        if attempt not in known:
            known.add(int(attempt))
            lineage.append((int(attempt), min(int(step), lineage[-1][1])))
    return lineage
