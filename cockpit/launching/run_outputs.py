"""RUN:STAGE and RUN:STAGE@STEP as inputs: the output or the checkpoint of another run, with its identity."""

from __future__ import annotations

from pathlib import Path

from cockpit.runs.find import find_run
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.artifacts.checkpoints import Checkpoint, scan
from engines.artifacts.manifest import ManifestError, manifest_sha256, verify_manifest
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir, RunDirError
from recipes.graph import FindOutput, RunOutput
from recipes.problems import OperatorError, printable
from recipes.stages.registry import output_of, row_of


def outputs_in(root: Path) -> FindOutput:
    """The function with which a recipe's RUN:STAGE is found in a folder of runs."""

    def find(run_name: str, stage: str, step: int | None) -> RunOutput:
        run = find_run(root, run_name)
        kind = _output_kind(run, stage)
        if step is not None:
            chosen = checkpoint_of(run, stage, step)
            return RunOutput(chosen.path, kind, chosen.sha256)
        return RunOutput(run.out(stage), kind, _finished(run, stage))

    return find


def checkpoint_of(run: RunDir, stage: str, step: int) -> Checkpoint:
    """The complete checkpoint of a step, of the newest attempt that has it.

    Raises:
        OperatorError: there is no such checkpoint, or the run is live: its rotation may remove it.
    """
    complete, _ = scan(run.stage_dir(stage))
    found = [checkpoint for checkpoint in complete if checkpoint.step == step]
    if not found:
        steps = ", ".join(str(step) for step in sorted({checkpoint.step for checkpoint in complete}))
        raise OperatorError(
            f"{run.id}:{stage} has no complete checkpoint of step {step}", f"available: {steps or 'none'}"
        )
    if lock_is_held(run.supervisor_lock):
        raise OperatorError(
            f"{run.id} is running, and may remove the checkpoint of step {step}",
            f"stop it first: cockpit stop {run.id}",
        )
    return found[-1]


def plan_of(run: RunDir) -> RunRecipe:
    """The resolved recipe of a run.

    Raises:
        OperatorError: it cannot be read.
    """
    try:
        return RunRecipe.read(run)
    except RunDirError as error:
        raise OperatorError(str(error)) from error


def _output_kind(run: RunDir, stage: str) -> str:
    plan = plan_of(run)
    if stage not in plan.order:
        raise OperatorError(f"{run.id} has no stage {printable(stage)}", f"stages: {', '.join(plan.order)}")
    return output_of(plan.stage(stage))


def _finished(run: RunDir, stage: str) -> str:
    """The SHA-256 of the manifest of a stage's output. Sizes are compared with the manifest, bytes are not."""
    out = run.out(stage)
    try:
        sha256 = manifest_sha256(out)
        problems = verify_manifest(out, hashes=False)
    except ManifestError as error:
        finished = ", ".join(path.parent.name for path in run.all_outs()) or "none"
        hint = f"finished stages: {finished}"
        if row_of(plan_of(run).stage(stage)).trains and scan(run.stage_dir(stage))[0]:
            hint += f"; a checkpoint: {run.id}:{stage}@STEP"
        raise OperatorError(f"{run.id}:{stage} has no finished output", hint) from error
    if problems:
        raise OperatorError(f"{run.id}:{stage} is damaged: {'; '.join(problems[:3])}", f"see: cockpit verify {run.id}")
    return sha256
