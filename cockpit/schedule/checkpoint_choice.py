"""The checkpoint from which an attempt resumes: the newest complete one of the training's own past."""

from __future__ import annotations

from dataclasses import dataclass

from cockpit.schedule.facts import StageFacts
from engines.artifacts.checkpoints import Checkpoint, scan_attempt
from engines.artifacts.manifest import verify_manifest
from engines.run_dir.paths import RunDir
from engines.stage_file import StageResume


@dataclass(frozen=True)
class CheckpointChoice:
    """The chosen checkpoint, if any, and one sentence for each checkpoint that was skipped."""

    chosen: Checkpoint | None
    refused: list[str]

    def as_resume(self) -> StageResume | None:
        """The choice in the form of `stage.json`."""
        found = self.chosen
        if found is None:
            return None
        return StageResume(attempt=found.attempt, step=found.step, path=str(found.path), sha256=found.sha256)


def candidates(
    run: RunDir, stage: str, facts: StageFacts, *, at_step: int | None
) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints from which the stage can resume, best first, and why others cannot be used.

    A step that the operator named is searched in every attempt, the training's own line first. Otherwise only that line
    counts: a checkpoint after the step to which an operator went back is not used, although it exists.
    """
    lineage = facts.lineage()
    found: list[tuple[bool, Checkpoint]] = []
    refused: list[str] = []
    for attempt in run.attempts(stage):
        complete, bad = scan_attempt(run.checkpoints(stage, attempt))
        refused += [f"skipped checkpoint {run.relative(path)}: {reason}" for path, reason in bad]
        cap = lineage.get(attempt)
        for checkpoint in complete:
            own = attempt in lineage and (cap is None or checkpoint.step <= cap)
            if (own and at_step is None) or checkpoint.step == at_step:
                found.append((own, checkpoint))
    found.sort(key=lambda item: (item[0], item[1].step, item[1].attempt), reverse=True)
    return [checkpoint for _, checkpoint in found], refused


def choose_checkpoint(
    run: RunDir, stage: str, facts: StageFacts, *, at_step: int | None = None, healthy_only: bool = False
) -> CheckpointChoice:
    """The newest checkpoint whose files all verify, and the checkpoints that were skipped before it."""
    ordered, refused = candidates(run, stage, facts, at_step=at_step)
    for checkpoint in ordered:
        if healthy_only and not checkpoint.healthy:
            refused.append(f"skipped checkpoint step-{checkpoint.step}: it was not healthy when it was written")
            continue
        problems = verify_manifest(checkpoint.path)
        if not problems:
            return CheckpointChoice(checkpoint, refused)
        refused.append(f"skipped checkpoint {run.relative(checkpoint.path)}: {'; '.join(problems[:3])}")
    return CheckpointChoice(None, refused)
