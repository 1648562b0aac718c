"""`cockpit run --from RUN:STAGE`: the recipe of a run that starts from a result or a checkpoint of another run.

The recipe has the stage and the stages that depend on it, with the values of that run; what they read of its other
stages becomes RUN:STAGE. With `--stage` it has only what that stage needs, so nothing is asked of the others. For a
stage that trains, `start_from` names where its training starts:

- RUN:STAGE: its finished weights. The training is a new one, from step 0, with a new optimizer and schedule. Everything
  may change but the shapes of the weights and what they compute.
- RUN:STAGE@STEP: a checkpoint. The training continues after that step with the optimizer, the schedule, the random
  states and the position in the data. Only what a resume may change may change.

Other stages run again, on the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cockpit.launching.run_outputs import checkpoint_of, outputs_in, plan_of
from cockpit.launching.trusting import require_trusted_to_start
from cockpit.runs.find import find_run
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe, folder_with
from engines.run_dir.paths import RECIPE_TOML, RunDir
from recipes.fields import FieldSpec, fields_of
from recipes.graph import RUN_STAGE, FindOutput
from recipes.load import LoadedRecipe, load_recipe_text
from recipes.problems import OperatorError, RecipeError, printable
from recipes.resume_changes import change_recipe, refuse_at_resume, refuse_for_weights
from recipes.spelling import spell
from recipes.stages.fields import StageFields
from recipes.stages.registry import row_of, tag_of_stage

START_FROM = "start_from"


def recipe_from(
    root: Path, wanted: str, checkpoint: int | None, sets: Sequence[str], only: str | None = None
) -> tuple[LoadedRecipe, RunDir]:
    """The recipe, loaded with its overrides, and the run that it starts from.

    Args:
        root: the folder of runs.
        wanted: RUN:STAGE, as typed.
        checkpoint: the step of the checkpoint to continue; None for the finished output.
        sets: overrides, each `STAGE.FIELD=VALUE`.
        only: the last stage to run; None for all that depend on the first.

    Raises:
        OperatorError: the run, stage, output or checkpoint does not exist, an input of the stages is missing, the run
            is not trusted (its recipe names the interpreters that would be started), or an override cannot be applied.
    """
    run_name, colon, stage = wanted.rpartition(":")
    if not colon or not run_name:
        raise OperatorError(f"--from — got {printable(wanted, 200)}; allowed: RUN:STAGE", "list the runs: cockpit ls")
    run = find_run(root, run_name)
    if RUN_STAGE.fullmatch(f"{run.id}:x") is None or run.root.parent != root:
        raise OperatorError(f"--from — {run.root} is not in {root}", f"give its folder: --runs-dir {run.root.parent}")
    require_trusted_to_start(run, "a run from it", "then start it")
    plan = plan_of(run)
    if stage not in plan.order:
        raise OperatorError(f"--from — {run.id} has no stage {printable(stage)}; allowed: {', '.join(plan.order)}")
    trains = row_of(plan.stage(stage)).trains
    if checkpoint is not None and not trains:
        raise OperatorError(
            f"--checkpoint — a {plan.stage(stage).kind} stage has no checkpoints", f"leave it out: --from {wanted}"
        )
    if checkpoint is not None:
        checkpoint_of(run, stage, checkpoint)
    kept = _kept(plan, stage, only)
    text = _text(run, plan, stage, checkpoint, kept)
    find = outputs_in(root)
    before = _loaded(text, (), find, wanted)
    changed = change_recipe(before.resolved, sets)
    own = [change for change in changed.changes if change.stage == stage]
    if trains and checkpoint is not None:
        refuse_at_resume(own, before.recipe, run.id, {stage} if run.out(stage).is_dir() else ())
    elif trains:
        refuse_for_weights(own, before.recipe)
    return _loaded(text, sets, find, wanted), run


def _kept(plan: RunRecipe, stage: str, only: str | None) -> set[str]:
    """The stages of the new recipe: those that depend on the first, up to the last one that is wanted.

    Raises:
        OperatorError: the last one does not depend on the first.
    """
    dependent = plan.descendants({stage})
    if only is None:
        return dependent
    if only not in dependent:
        allowed = ", ".join(name for name in plan.order if name in dependent)
        raise OperatorError(
            f"--stage — {printable(only)} does not depend on {stage}, which --from names; allowed: {allowed}"
        )
    return dependent & plan.ancestors({only})


def _loaded(text: str, sets: Sequence[str], find: FindOutput, wanted: str) -> LoadedRecipe:
    """The recipe, whose text is in no file: its problems have no lines.

    Raises:
        OperatorError: the problems.
    """
    try:
        return load_recipe_text(text, Path.cwd() / RECIPE_TOML, sets, find)
    except RecipeError as error:
        words = [str(one) if isinstance(one.path, str) else f"--from {wanted}: {one.words}" for one in error.problems]
        left_out = any(not isinstance(one.path, str) for one in error.problems)
        hint = "to run fewer of the stages that depend on it, name the last one: --stage STAGE" if left_out else ""
        raise OperatorError("\n".join(words), hint) from error


def _text(run: RunDir, plan: RunRecipe, stage: str, checkpoint: int | None, kept: set[str]) -> str:
    """The recipe as TOML: only values that are not the default, so that it reads like one that was written."""
    start = f"{run.id}:{stage}" if checkpoint is None else f"{run.id}:{stage}@{checkpoint}"
    description = f"Starts from {start}."
    lines = ["schema = 1", f"name = {spell(plan.recipe.name)}", f"description = {spell(description)}"]
    lines += [f"{name} = {spell(getattr(plan.recipe, name))}" for name in ("sample_interval_s", "stop_grace_s")]
    for name in plan.order:
        if name in kept:
            fields = _values(run, plan, name, kept)
            if name == stage and row_of(plan.stage(name)).trains:
                fields[START_FROM] = start
            lines += ["", "[[stage]]", *(f"{key} = {spell(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _values(run: RunDir, plan: RunRecipe, name: str, kept: set[str]) -> dict[str, Any]:
    stage = plan.stage(name)
    dumped = stage.model_dump(mode="json")
    values: dict[str, Any] = {"name": name, "kind": stage.kind}
    if dumped.get("output", "") not in ("", row_of(stage).default_output):
        values["output"] = dumped["output"]
    for spec in fields_of(tag_of_stage(stage)):
        if spec.path == "name":
            continue
        value = _value(stage, spec)
        if spec.accepts and value is not None:
            value = _inputs(run, plan, name, spec.path, value, kept)
        if value is not None and (value != spec.default or spec.required):
            values[spec.path] = _without_none(value)
    return values


def _value(stage: StageFields, spec: FieldSpec) -> Any:
    value: Any = stage.model_dump(mode="json")
    for part in spec.path.split("."):
        value = value[part]
    return value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _inputs(run: RunDir, plan: RunRecipe, name: str, field: str, value: Any, kept: set[str]) -> Any:
    refs = plan.inputs.get(name, {})
    if isinstance(value, list):
        return [_input(run, refs.get(f"{field}[{n}]"), item, kept) for n, item in enumerate(value)]
    return _input(run, refs.get(field), value, kept)


def _input(run: RunDir, ref: InputRef | None, value: str, kept: set[str]) -> str:
    """An input as the new recipe names it: a stage that it has, RUN:STAGE for any other, else the path or hub id."""
    if ref is None or ref.origin == "hub":
        return value
    if ref.origin == "stage":
        return ref.name if ref.name in kept else f"{run.id}:{ref.name}"
    assert ref.path is not None
    if ref.manifest_sha256 is not None:
        return str(folder_with(ref.manifest_sha256, Path(ref.path), run.root) or ref.path)
    return ref.path
