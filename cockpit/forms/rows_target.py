"""The rows that TARGET names: of a stage of a recipe or of a run, or of data with a model beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cockpit.forms.find import load_wanted
from cockpit.planning.data_look import rows_place, through_stages, tokenizer_of
from cockpit.runs.find import find_run
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe
from engines.look.row_view import RowsJob
from engines.run_dir.paths import RunDir
from engines.stage_file import first_start_of
from recipes.graph import RUN_STAGE, Reference, is_path
from recipes.load import LoadedRecipe, load_recipe_text
from recipes.problems import OperatorError, printable
from recipes.spelling import spell
from recipes.stages.data_fields import ReadFields
from recipes.stages.fields import StageFields
from recipes.stages.launch.fields import interpreter_here
from recipes.stages.registry import output_of

_OF_RECIPE = re.compile(r"(?P<recipe>.+?)(?::(?P<stage>[a-z0-9-]{1,40}))?")
_ONE = "rows"


@dataclass(frozen=True)
class RowsTarget:
    """What a process of rows is asked for: the job, its interpreter, and a title."""

    job: RowsJob
    python: str
    title: str


def rows_of_recipe(loaded: LoadedRecipe, stage: str | None, split: str = "") -> RowsTarget:
    """The rows that a stage of a recipe reads; without a name, the only stage that reads rows.

    Raises:
        OperatorError: there is no such stage, or its data does not exist yet.
    """
    chosen = _chosen(loaded, stage)
    number = next(n for n, item in enumerate(loaded.recipe.stage) if item.name == chosen.name)
    refs = loaded.graph.inputs[chosen.name]
    place = rows_place(loaded, refs.get("data"))
    if place is None:
        source = refs["data"].name if "data" in refs else "nothing"
        raise OperatorError(
            f"the data of {chosen.name} is the output of {printable(source)}, which does not exist yet",
            f"after a run, name it: cockpit rows RUN:{chosen.name}",
        )
    found = _target(
        loaded.resolved["stage"][number],
        chosen,
        place.data,
        tokenizer_of(through_stages(loaded, refs.get("model"))),
        split,
    )
    found.job.prepare = place.prepare
    return found


def rows_of_run(run: RunDir, stage: str, split: str = "") -> RowsTarget:
    """The rows that a stage of a run read; those that it wrote for a prepare stage.

    Raises:
        OperatorError: the run has no such stage, or the stage reads no rows.
    """
    plan = RunRecipe.read(run)
    if stage not in plan.order:
        raise OperatorError(f"{run.id} has no stage {printable(stage)!r}; allowed: {', '.join(plan.order)}")
    fields = plan.stage(stage)
    table = next(item for item in plan.to_json()["recipe"]["stage"] if item["name"] == stage)
    if output_of(fields) == "messages":
        return _of_messages(run, stage, split)
    if not isinstance(fields, ReadFields):
        raise OperatorError(f"stage {stage} reads no rows", "name a finetune, dpo, evaluate or prepare stage")
    places = {name: _place_in_run(run, ref) for name, ref in plan.inputs.get(stage, {}).items()}
    data = places.get("data")
    if data is None or not data.exists():
        raise OperatorError(
            f"the data of {stage} in {run.id} does not exist", "the run has not made it, or it was removed"
        )
    model = tokenizer_of(Reference("path", "", places["model"])) if places.get("model") else None
    found = _target(table, fields, data, model, split)
    found.job.first_start = first_start_of(run, stage)
    return found


def rows_of_data(data: str, model: str | None, sets: Sequence[str], split: str = "") -> RowsTarget:
    """The rows of a file, a folder or a cached dataset, as a finetune stage with these fields would read them.

    Args:
        data: the place.
        model: a model folder or a hub id, for its tokenizer; None: rows without tokens.
        sets: fields, each `FIELD=VALUE`.
        split: the split to show.

    Raises:
        OperatorError: a field is wrong, or the data does not exist.
    """
    place = data if is_path(data) or not Path(data).exists() else f"./{data}"
    base = "no/model" if model is None else model if is_path(model) or not Path(model).exists() else f"./{model}"
    text = (
        f'schema = 1\nname = "{_ONE}"\n[[stage]]\nname = "{_ONE}"\nkind = "finetune"\nmodel = {spell(base)}\n'
        f"data = {spell(place)}\n"
    )
    loaded = load_recipe_text(text, Path.cwd() / "rows.toml", [f"{_ONE}.{one}" for one in sets])
    found = rows_of_recipe(loaded, _ONE, split)
    found.job.any_kind = True
    return (
        found
        if model is not None
        else RowsTarget(RowsJob(found.job.stage, found.job.data, None, split), found.python, found.title)
    )


def find_rows(
    target: str, runs: Path, *, model: str | None = None, sets: Sequence[str] = (), split: str = ""
) -> RowsTarget:
    """The rows that TARGET names: RUN:STAGE, RECIPE:STAGE, RECIPE, or data.

    Raises:
        OperatorError: nothing has this name, or it has no rows.
    """
    path = Path(target).expanduser()
    if path.exists() and path.suffix.lower() != ".toml":
        return rows_of_data(target, model, sets, split)
    named = _OF_RECIPE.fullmatch(target)
    if named is not None and (Path(named["recipe"]).expanduser().is_file() or named["stage"] is None):
        return rows_of_recipe(load_wanted(named["recipe"], sets, runs), named["stage"], split)
    of_run = RUN_STAGE.fullmatch(target)
    if of_run is not None:
        return _run_or_recipe(of_run, runs, sets, split)
    return rows_of_data(target, model, sets, split)


def _run_or_recipe(named: re.Match[str], runs: Path, sets: Sequence[str], split: str) -> RowsTarget:
    """RUN:STAGE, or NAME:STAGE of a shipped recipe."""
    try:
        run = find_run(runs, named[1])
    except OperatorError as error:
        try:
            loaded = load_wanted(named[1], sets, runs)
        except OperatorError:
            raise error from None
        return rows_of_recipe(loaded, named[2], split)
    return rows_of_run(run, named[2], split)


def _chosen(loaded: LoadedRecipe, name: str | None) -> StageFields:
    stages = [stage for stage in loaded.recipe.stage if isinstance(stage, ReadFields)]
    listed = ", ".join(stage.name for stage in stages) or "none"
    if name is None:
        if len(stages) == 1:
            return stages[0]
        path = printable(str(loaded.path), 200)
        raise OperatorError(f"{path} has {len(stages)} stages that read rows: {listed}", f"name one: {path}:STAGE")
    for stage in stages:
        if stage.name == name:
            return stage
    raise OperatorError(f"no stage {printable(name)!r} that reads rows; allowed: {listed}")


def _target(table: Mapping[str, Any], stage: StageFields, data: Path, model: Path | None, split: str) -> RowsTarget:
    job = RowsJob(dict(table), str(data), None if model is None else str(model), split)
    return RowsTarget(job, interpreter_here(stage), f"{stage.name} · {data.name}")


def _of_messages(run: RunDir, stage: str, split: str) -> RowsTarget:
    """The rows that a prepare stage wrote."""
    out = run.out(stage)
    if not out.is_dir():
        raise OperatorError(
            f"{run.id} has no output of {stage}", "the stage has not finished, or its output was removed"
        )
    found = rows_of_data(str(out), None, (), split)
    return RowsTarget(found.job, found.python, f"{run.id}:{stage}")


def _place_in_run(run: RunDir, ref: InputRef) -> Path | None:
    """Where an input of a run's stage is; None for a model of a hub that is not in the cache."""
    if ref.origin == "stage":
        return run.out(ref.name)
    if ref.path is not None:
        return Path(ref.path)
    return tokenizer_of(Reference("hub", ref.name))
