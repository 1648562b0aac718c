"""The changes of a resume: what they are, whether a checkpoint can be continued with them, and what runs again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cockpit.schedule.checkpoint_choice import candidates
from cockpit.schedule.facts import RunFacts
from cockpit.schedule.outputs import Outputs
from cockpit.schedule.recipe_changes import changed_plan
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.events.runs import FieldChanged
from engines.run_dir.paths import RunDir
from recipes.fingerprint import LEFT_OUT
from recipes.problems import Problem, RecipeError
from recipes.resume_changes import FieldChange, refused_at_resume
from recipes.stages.registry import row_of

EXTENDING = frozenset({"max_steps", "num_train_epochs"})
"""Fields that give a finished training more steps."""


@dataclass(frozen=True)
class ResumeChanges:
    """A plan with the changes of a resume.

    Attributes:
        plan: the recipe with the new values.
        changes: what changed; empty if nothing did.
        redo: stages that do not train and have new values: they run again, and so does what depends on them.
    """

    plan: RunRecipe
    changes: list[FieldChanged] = field(default_factory=list)
    redo: list[str] = field(default_factory=list)


def resume_changes(
    run: RunDir,
    plan: RunRecipe,
    facts: RunFacts,
    sets: Sequence[str],
    *,
    stage: str | None = None,
    checkpoint: int | None = None,
) -> ResumeChanges:
    """The changes of a resume, checked against the run.

    Args:
        run: the run.
        plan: its recipe before the changes.
        facts: its journal's facts.
        sets: overrides, each `STAGE.FIELD=VALUE`.
        stage: the stage that the resume reruns.
        checkpoint: the step that the resume goes back to, of `stage` or of the stage that has it.

    Raises:
        RecipeError: every override that names no field, whose value is wrong, or that a resume may not change.
    """
    if not sets:
        return ResumeChanges(plan)
    changed, fresh = changed_plan(plan, sets)
    changes = [FieldChange(change.stage, change.field, change.old, change.new) for change in fresh]
    problems = refused_at_resume(changes, plan.recipe, run.id, _not_begun(plan, facts), with_output(run, plan))
    refused = {problem.key for problem in problems}
    outputs = Outputs(run, plan, facts)
    redo: list[str] = []
    for name in dict.fromkeys(change.stage for change in fresh if change.stage):
        own = [change for change in fresh if change.stage == name and f"{name}.{change.field}" not in refused]
        if not row_of(plan.stage(name)).trains:
            redo += [name] if any(_decides(change.field) for change in own) else []
            continue
        if stage == name and checkpoint is None:
            continue  # it restarts from step 0
        problems += _step_problems(run, changed, facts, name, own, checkpoint)
        extended = any(change.field in EXTENDING for change in own)
        if checkpoint is None and not extended and outputs.is_done(name):
            problems += [_of_finished(run, name, change) for change in own if _decides(change.field)]
    if problems:
        raise RecipeError(problems)
    return ResumeChanges(changed, fresh, redo)


def _not_begun(plan: RunRecipe, facts: RunFacts) -> set[str]:
    """The stages of which no process has begun."""
    begun = {name for name, of in facts.stages.items() if any(not one.never_began for one in of.attempts.values())}
    return {stage.name for stage in plan.recipe.stage} - begun


def with_output(run: RunDir, plan: RunRecipe) -> set[str]:
    """The stages that have left an output: `cockpit run --from` starts from these."""
    return {stage.name for stage in plan.recipe.stage if run.out(stage.name).is_dir()}


def _decides(field_path: str) -> bool:
    """Whether a field is part of the fingerprint: a finished stage runs again when it changes."""
    return field_path.partition(".")[0] not in LEFT_OUT


def _of_finished(run: RunDir, name: str, change: FieldChanged) -> Problem:
    hint = (
        f"give it more steps ({' or '.join(sorted(EXTENDING))}), go back to a checkpoint (--checkpoint STEP), or rerun "
        f"it: cockpit resume {run.id} --stage {name}"
    )
    return Problem("--set", 0, f"{name}.{change.field}", f"{name} is finished, so this has no effect", hint=hint)


def _step_problems(
    run: RunDir, plan: RunRecipe, facts: RunFacts, name: str, own: Sequence[FieldChanged], checkpoint: int | None
) -> list[Problem]:
    """A last step that lies before the checkpoint from which the stage continues."""
    last: Any = getattr(plan.stage(name), "max_steps", None)
    if last is None or not any(change.field == "max_steps" for change in own):
        return []
    found, _ = candidates(run, name, facts.stage(name), at_step=checkpoint)
    step = found[0].step if found else 0
    if last >= step:
        return []
    message = f"the training continues from the checkpoint of step {step}"
    hint = f"or go back: --checkpoint STEP, at most {last}"
    return [Problem("--set", 0, f"{name}.max_steps", message, str(last), f"a whole number ≥ {step}", hint)]
