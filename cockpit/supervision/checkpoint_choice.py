"""Which checkpoint an attempt goes on from: the newest complete one of the training's own past."""

from __future__ import annotations

from dataclasses import dataclass

from cockpit.supervision.facts import StageFacts
from engines.checkpoints import Checkpoint, scan_attempt
from engines.manifest import verify_manifest
from engines.run_dir import RunDir
from engines.stage_file import StageResume


@dataclass(frozen=True)
class CheckpointChoice:
    """The chosen checkpoint, if any, and one sentence for each that was refused."""

    chosen: Checkpoint | None
    refused: list[str]

    def as_resume(self) -> StageResume | None:
        """The form `stage.json` has it in."""
        found = self.chosen
        if found is None:
            return None
        return StageResume(attempt=found.attempt, step=found.step, path=str(found.path), sha256=found.sha256)


def candidates(
    run: RunDir, stage: str, facts: StageFacts, *, at_step: int | None
) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints that may be gone on from, best first, and why others are not.

    A step that the operator named is looked for in every attempt, the training's own line first; otherwise only the
    line counts: what an operator went back behind is superseded, though it is still there.
    """
    lineage = facts.lineage()
    found: list[tuple[bool, Checkpoint]] = []
    refused: list[str] = []
    for attempt in run.attempts(stage):
        complete, bad = scan_attempt(run.checkpoints(stage, attempt))
        refused += [f"checkpoint {run.relative(path)} is not used: {reason}" for path, reason in bad]
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
    """The newest checkpoint whose every file verifies, and what was passed over on the way to it."""
    ordered, refused = candidates(run, stage, facts, at_step=at_step)
    for checkpoint in ordered:
        if healthy_only and not checkpoint.healthy:
            refused.append(f"checkpoint step-{checkpoint.step} is not used: it was not healthy when it was saved")
            continue
        problems = verify_manifest(checkpoint.path)
        if not problems:
            return CheckpointChoice(checkpoint, refused)
        refused.append(f"checkpoint {run.relative(checkpoint.path)} is not used: {'; '.join(problems[:3])}")
    return CheckpointChoice(None, refused)
