"""Launch and resume, for the command line, the form and the buttons."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cockpit
from cockpit.launching.adoption import Standing, standing
from cockpit.launching.changes import resume_changes
from cockpit.launching.interpreters import check_interpreters
from cockpit.launching.lm_eval_check import require_lm_eval
from cockpit.launching.run_outputs import outputs_in
from cockpit.launching.start import remove_unstarted, require_free, start_supervisor
from cockpit.launching.trusting import require_trusted_to_start
from cockpit.planning.data_look import data_problems, look_at_data
from cockpit.planning.judging.gate_check import gate_problems
from cockpit.planning.memory_check import memory_problems, recipe_memory
from cockpit.planning.model_check import check_folders, check_models, refuse
from cockpit.planning.stages import plan as make_plan
from cockpit.provenance.trust import seal, why_untrusted
from cockpit.schedule.checkpoint_choice import candidates
from cockpit.schedule.facts import RunFacts, read_facts
from cockpit.schedule.outputs import Outputs
from cockpit.schedule.recorded_inputs import changed_inputs
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe
from cockpit.schedule.scheduling import must_rerun
from engines.events.runs import FieldChanged
from engines.inputs.compare import InputChange
from engines.look.answer import StageLook
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RECIPE_TOML, RunDir, RunDirError, is_run_dir
from engines.words import StartReason
from recipes.graph import FindOutput, resolve_graph
from recipes.load import LoadedRecipe, load_recipe, load_recipe_text
from recipes.problems import OperatorError, RecipeError
from recipes.stages.registry import row_of


def resolve(loaded: LoadedRecipe, only: Sequence[str] = (), find_output: FindOutput | None = None) -> RunRecipe:
    """The resolved recipe of a run, from a loaded recipe; `find_output` finds the outputs of other runs.

    Raises:
        OperatorError: `only` names a stage that the recipe does not have, or an output of another run does not exist.
    """
    graph = resolve_graph(loaded.recipe, loaded.path.parent, find_output=find_output)
    inputs = {
        stage: {
            field: InputRef(ref.origin, ref.name, None if ref.path is None else str(ref.path), ref.manifest_sha256)
            for field, ref in refs.items()
        }
        for stage, refs in graph.inputs.items()
    }
    whole = RunRecipe(loaded.recipe, list(graph.order), inputs, [])
    unknown = [name for name in only if name not in whole.order]
    if unknown:
        raise OperatorError(f"--stage — no stage {unknown[0]!r}; allowed: {', '.join(whole.order)}")
    wanted = whole.ancestors(set(only))
    chosen = [name for name in whole.order if name in wanted] if only else []
    return RunRecipe(loaded.recipe, whole.order, inputs, chosen, origins=loaded.origins())


def launch(
    recipe: Path | LoadedRecipe,
    *,
    runs_root: Path,
    sets: Sequence[str] = (),
    name: str | None = None,
    only: Sequence[str] = (),
    parent: str | None = None,
) -> RunDir:
    """Create a run directory and start its supervisor; returns when the supervisor holds the run's lock.

    Args:
        recipe: a recipe file, or a loaded recipe (from a form or a button).
        runs_root: the folder of runs.
        sets: overrides in the form of `--set`, for a recipe file.
        name: the end of the run's id; the recipe's name by default.
        only: run only these stages and the stages they depend on.
        parent: the run whose result is this run's input.

    Raises:
        OperatorError: the recipe has problems, an interpreter lacks packages, or the directory cannot be created.
    """
    find_output = outputs_in(runs_root)
    loaded = load_recipe(recipe, sets, find_output) if isinstance(recipe, Path) else recipe
    run_recipe = resolve(loaded, only, find_output)
    check_models(loaded)
    check_folders(loaded)
    check_interpreters(loaded.recipe, run_recipe.wanted())
    require_lm_eval(loaded, run_recipe.wanted())
    looks = look_at_data(loaded)
    memory = memory_problems(recipe_memory(loaded, looks), loaded)
    refuse(loaded, [*data_problems(loaded, looks), *gate_problems(loaded, looks), *memory])
    if name is not None and not _is_name(name):
        raise OperatorError(f"--name — got {name!r}; allowed: 1 to 60 letters, digits, '.', '_' and '-'")
    try:
        run = create_run_dir(
            runs_root,
            name=name or loaded.recipe.name,
            recipe=loaded.recipe.name,
            recipe_toml=loaded.text,
            recipe_json=run_recipe.to_json(),
            plan_json=_plan_json(loaded, looks),
            version=cockpit.__version__,
            recipe_path=str(loaded.path),
            parent=parent or _parent_of(run_recipe),
            sets=loaded.overrides,
            seal=seal,
        )
    except RunDirError as error:
        raise OperatorError(str(error), "choose another folder: --runs-dir DIR") from error
    try:
        _require_private(run)
        start_supervisor(run, StartReason.LAUNCH)
    except OperatorError:
        remove_unstarted(run)
        raise
    return run


def _require_private(run: RunDir) -> None:
    """Refuse a folder of runs on a file system that does not keep files for their owner.

    Raises:
        OperatorError: another user could change what the run starts.
    """
    reason = why_untrusted(run)
    if reason:
        raise OperatorError(f"the run directory is not private: {reason}", "choose another folder: --runs-dir DIR")


def launch_text(
    text: str,
    *,
    runs_root: Path,
    folder: Path,
    sets: Sequence[str] = (),
    name: str | None = None,
    parent: str | None = None,
) -> RunDir:
    """Launch a recipe that is only text: an unsaved form, or a one-stage recipe of a button or a command."""
    try:
        loaded = load_recipe_text(text, folder / RECIPE_TOML, sets, outputs_in(runs_root))
    except RecipeError as error:  # the text is not in a file, so line numbers would not help
        raise OperatorError("\n".join(problem.words for problem in error.problems)) from error
    return launch(loaded, runs_root=runs_root, name=name, parent=parent)


def resume(
    run: RunDir,
    *,
    stage: str | None = None,
    checkpoint: int | None = None,
    sets: Sequence[str] = (),
    accept_changed_inputs: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[FieldChanged]:
    """Resume a run that has ended or was lost; returns the fields of the recipe that it changes.

    Args:
        run: the run.
        stage: rerun this stage and the stages that depend on it.
        checkpoint: resume from the checkpoint of this step; later steps are repeated.
        sets: fields to change, each `STAGE.FIELD=VALUE`; the run's `recipe.json` is written again with them.
        accept_changed_inputs: continue although inputs are not the recorded ones; the journal lists them.
        progress: called with bytes read and in total while large inputs are compared; what it raises ends the work.

    Raises:
        OperatorError: the run is running or not trusted, there is nothing to resume, the stage or checkpoint does not
            exist, a change is not possible at a resume, or an input is not the recorded one.
    """
    require_free(run)
    require_trusted_to_start(run, "a resume", "then resume it")
    if sets or stage is not None or checkpoint is not None:
        _require_no_engine(run)
    try:
        run.require_writable_format()
        plan = RunRecipe.read(run)
    except RunDirError as error:
        raise OperatorError(str(error)) from error
    facts = read_facts(run)
    changed = resume_changes(run, plan, facts, sets, stage=stage, checkpoint=checkpoint)
    plan = changed.plan
    check_interpreters(plan.recipe, plan.wanted())
    if stage is not None and stage not in plan.order:
        raise OperatorError(f"--stage — no stage {stage!r} in {run.id}; allowed: {', '.join(plan.order)}")
    # With "=": a stage may have a name that begins like an option.
    arguments = [f"--set={text}" for text in sets] if changed.changes else []
    target = stage
    if checkpoint is not None:
        target = _stage_with_checkpoint(run, plan, facts, stage, checkpoint)
        arguments += [f"--checkpoint={checkpoint}", f"--checkpoint-stage={target}"]
    redo = list(dict.fromkeys([*([] if target is None else [target]), *changed.redo]))
    if redo:
        arguments += [f"--redo={','.join(redo)}"]
        if plan.only:  # the launch may have left out the stage that is requested now
            wanted = plan.ancestors(set(plan.only) | set(redo))
            arguments += [f"--only={','.join(name for name in plan.order if name in wanted)}"]
    done = _finished(run, plan, facts)
    # A lost run may lack only the record of its end.
    if not redo and facts.has_ended and set(plan.wanted()) <= done:
        raise OperatorError(
            f"{run.id} has nothing to resume: every stage is finished",
            f"rerun a stage: cockpit resume {run.id} --stage STAGE, or --checkpoint STEP",
        )
    again = plan.descendants(set(redo) | (set(plan.wanted()) - done))
    other = changed_inputs(run, plan, facts, [name for name in plan.order if name in again], progress)
    if other and not accept_changed_inputs:
        raise _inputs_changed(run, other)
    if other:
        accepted = json.dumps([change.to_json() for change in other])
        arguments += [f"--accepted-inputs={accepted}"]
    start_supervisor(run, StartReason.RESUME, arguments)
    return changed.changes


def _require_no_engine(run: RunDir) -> None:
    """Refuse to change a stage while an engine lives whose supervisor has died: it keeps the values that it began with.

    Raises:
        OperatorError: an engine of the run is running.
    """
    if standing(run) is Standing.ENGINE_LIVES:
        raise OperatorError(
            f"an engine of {run.id} is running without a supervisor: it keeps the values and the start that it has",
            f"stop it first: cockpit stop {run.id}; or let it continue: cockpit attach {run.id}",
        )


def _parent_of(plan: RunRecipe) -> str | None:
    """The run whose output the recipe names first; None without one."""
    paths = (
        Path(ref.path) for refs in plan.inputs.values() for ref in refs.values() if ref.manifest_sha256 and ref.path
    )
    return next((run.name for path in paths for run in path.parents if is_run_dir(run)), None)


def _finished(run: RunDir, plan: RunRecipe, facts: RunFacts) -> set[str]:
    """The stages that need no attempt, without those that an operator requested to rerun."""
    outputs = Outputs(run, plan, facts)
    return {name for name in plan.wanted() if not must_rerun(plan, facts, name) and outputs.is_done(name)}


def _inputs_changed(run: RunDir, changes: Sequence[InputChange]) -> OperatorError:
    lines = [line for change in changes for line in change.lines()]
    return OperatorError(
        "\n".join([f"{run.id}: inputs are not those that were recorded when the stage read them", *lines]),
        f"restore them, or accept them: cockpit resume {run.id} --accept-changed-inputs",
    )


def _stage_with_checkpoint(run: RunDir, plan: RunRecipe, facts: RunFacts, stage: str | None, step: int) -> str:
    """The training stage that has this checkpoint: the named stage, else the last one that has it."""
    available: list[str] = []
    for name in reversed(plan.order):
        if not row_of(plan.stage(name)).trains or stage not in (None, name):
            continue
        found, _ = candidates(run, name, facts.stage(name), at_step=step)
        if found:
            return name
        steps = sorted({path.step for path in candidates(run, name, facts.stage(name), at_step=None)[0]})
        available.append(f"{name}: {', '.join(map(str, steps)) or 'none'}")
    raise OperatorError(
        f"--checkpoint — {run.id} has no complete checkpoint of step {step}; "
        f"available: {'; '.join(available) or 'none'}"
    )


def _plan_json(loaded: LoadedRecipe, looks: Mapping[str, StageLook]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(make_plan(loaded.recipe, loaded.graph, looks).to_json()))
    return value


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 60 and name[0].isalnum() and all((c.isalnum() and c.isascii()) or c in "._-" for c in name)
