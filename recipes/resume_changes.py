"""Changes of a resolved recipe: which fields a resume may change, and what the changed recipe is.

A field of a stage that trains declares `at_resume` (`recipes.setting`): whether its checkpoints can be continued with
another value. A stage that does not train runs again from its start, so every field of it may change except its inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recipes.explain import check_table
from recipes.fields import FieldSpec, fields_of, recipe_fields
from recipes.overrides import apply_overrides
from recipes.problems import Problem, RecipeError
from recipes.schema import Recipe
from recipes.setting import AtResume
from recipes.source import Source
from recipes.spelling import spell
from recipes.stages.fake import FakeStage
from recipes.stages.registry import STAGE_TYPES, tag_of_table, trains
from recipes.stages.training import TrainingFields
from recipes.toml_scan import KeyPath, TomlIndex

MAX_CHARACTERS = 16 * 1024
"""Limit of all values of one change together: they are written into one record of the journal."""

REASONS: Mapping[AtResume, str] = {
    "identity": "it is part of the run's identity",
    "input": "it names what the stage reads, and a checkpoint continues on the same inputs only",
    "shapes": "it changes the shapes of the weights, which the checkpoint's weights would not fit",
    "order": "it changes which examples a step reads, so the checkpoint's position in the data would be wrong",
    "optimizer": "it changes the form of the optimizer's state, which the checkpoint contains",
    "arithmetic": "it changes what the same weights compute",
    "comparison": "it changes which tokens a validation loss counts, and the best checkpoint is chosen by that loss",
    "start": "it has an effect at the start of a training only",
}
"""Why a resume may not change a field, by the field's `at_resume`."""
_FIXED = frozenset({"shapes", "arithmetic"})
"""Reasons for which the weights of an earlier run cannot be used either."""
_AT_LAUNCH = ("name", "kind", "output")


RESOLVED = "recipe.json"
"""The file of a run with every value of its recipe, which no operator has written."""


@dataclass(frozen=True)
class FieldChange:
    """One changed field.

    `stage` is empty for a field of the recipe itself. `old` and `new` are TOML, or `none` for a field without a value.
    """

    stage: str
    field: str
    old: str
    new: str

    @property
    def key(self) -> str:
        """The field as `--set` spells it."""
        return f"{self.stage}.{self.field}" if self.stage else self.field


@dataclass(frozen=True)
class ChangedRecipe:
    """A recipe with changes applied, as a model and as JSON data, and what changed."""

    recipe: Recipe
    changes: list[FieldChange]


def change_recipe(resolved: Mapping[str, Any], sets: Sequence[str]) -> ChangedRecipe:
    """Apply overrides to a resolved recipe and check the result; whether a resume allows them is not asked here.

    Args:
        resolved: every value of the recipe, as JSON data.
        sets: overrides, each `STAGE.FIELD=VALUE`.

    Raises:
        RecipeError: every override that names no field, or whose value is wrong.
    """
    source = Source(RESOLVED, TomlIndex(), copy.deepcopy(dict(resolved)))
    problems: dict[Problem, None] = {}
    direct = []
    for text in sets:
        if text.startswith("defaults."):
            key = text.partition("=")[0].strip()
            message = "defaults apply when a run is launched"
            problems[Problem(f"--set {text}", 0, key, message, hint="name the stage: STAGE.FIELD=VALUE")] = None
        else:
            direct.append(text)
    problems |= dict.fromkeys(apply_overrides(source, direct))
    _check(source, problems)
    if problems:
        raise RecipeError([_at_override(problem, sets) for problem in problems])
    recipe = Recipe.model_validate(source.data)
    changes = list(_changes(resolved, recipe.model_dump(mode="json", by_alias=True)))
    if sum(len(change.old) + len(change.new) for change in changes) > MAX_CHARACTERS:
        limit = f"at most {MAX_CHARACTERS} characters in all values together"
        raise RecipeError([Problem("--set", 0, "", "the changed values are too long", allowed=limit)])
    return ChangedRecipe(recipe, changes)


def refused_at_resume(
    changes: Sequence[FieldChange],
    recipe: Recipe,
    run: str,
    not_begun: Collection[str] = (),
    finished: Collection[str] = (),
) -> list[Problem]:
    """The changes with which a checkpoint cannot be continued, each with the reason and the way to make it.

    Another number of processes is one that a checkpoint can be continued with while a step has the same rows.

    Args:
        changes: the changes.
        recipe: the recipe before them.
        run: the run's id, for the way to make a change.
        not_begun: stages that no process has begun: they have no checkpoint, so all but their inputs may change.
        finished: stages that have an output, from which a new run can start.
    """
    problems: list[Problem] = []
    allowed: set[FieldChange] = set()
    for stage in recipe.stage:
        own = [change for change in changes if change.stage == stage.name]
        if stage.name in not_begun:
            allowed |= {change for change in own if not spec_of(recipe, change).accepts}
        elif isinstance(stage, TrainingFields) and any(change.field in PROCESSES for change in own):
            before, after = stage.rows_per_step, _rows_per_step(stage, own)
            if before == after:
                allowed |= {change for change in own if change.field in OF_A_STEP}
            else:
                problems.append(_other_rows(stage, own, after))
    return problems + [
        problem
        for change in changes
        if change not in allowed
        and (problem := _refused(change, recipe, run, finished=change.stage in finished)) is not None
    ]


PROCESSES = ("launch.processes", "launch.nodes")
OF_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", *PROCESSES)
"""Fields whose product is the number of rows of a step."""


def _rows_per_step(stage: TrainingFields, changes: Sequence[FieldChange]) -> int:
    """The rows of a step with the changes of these fields."""
    given = {change.field: int(change.new) for change in changes if change.field in OF_A_STEP}
    present = {
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "launch.processes": stage.launch.processes,
        "launch.nodes": stage.launch.nodes,
    }
    return math.prod((present | given).values())


def _other_rows(stage: TrainingFields, changes: Sequence[FieldChange], rows: int) -> Problem:
    """A number of processes with which a step would read other rows, and the accumulation that would keep them."""
    first = next(change for change in changes if change.field in PROCESSES)
    each = rows // _now(stage, changes, "gradient_accumulation_steps")
    steps, rest = divmod(stage.rows_per_step, each)
    hint = f"{stage.rows_per_step} rows cannot be divided into forward passes of {each} rows"
    if not rest:
        hint = f"keep them: --set {stage.name}.gradient_accumulation_steps={steps}"
    message = f"a step would read {rows} rows, and reads {stage.rows_per_step} in the checkpoint"
    return Problem("--set", 0, first.key, message, first.new, "", hint)


def _now(stage: TrainingFields, changes: Sequence[FieldChange], field: str) -> int:
    return next((int(change.new) for change in changes if change.field == field), int(getattr(stage, field)))


def refuse_at_resume(changes: Sequence[FieldChange], recipe: Recipe, run: str, finished: Collection[str] = ()) -> None:
    """Refuse changes with which a checkpoint cannot be continued; `finished` as for `refused_at_resume`.

    Raises:
        RecipeError: every such change.
    """
    problems = refused_at_resume(changes, recipe, run, finished=finished)
    if problems:
        raise RecipeError(problems)


def refuse_for_weights(changes: Sequence[FieldChange], recipe: Recipe) -> None:
    """Refuse changes with which the weights of a finished stage cannot be used in another training.

    Raises:
        RecipeError: every such change.
    """
    kinds = {stage.name: stage.kind for stage in recipe.stage}
    problems = []
    for change in changes:
        rule = spec_of(recipe, change).at_resume
        if rule in _FIXED and trains(kinds.get(change.stage, "")):
            hint = "to train with it, launch the recipe again: cockpit run RECIPE"
            problems.append(_problem(change, REASONS[rule], hint))
    if problems:
        raise RecipeError(problems)


def spec_of(recipe: Recipe, change: FieldChange) -> FieldSpec:
    """The field of a change."""
    specs = recipe_fields()
    if change.stage:
        stage = next(stage for stage in recipe.stage if stage.name == change.stage)
        specs = fields_of(str(tag_of_table(stage.model_dump())))
    return next(spec for spec in specs if spec.path == change.field)


def _refused(change: FieldChange, recipe: Recipe, run: str, *, finished: bool) -> Problem | None:
    spec = spec_of(recipe, change)
    kind = next((stage.kind for stage in recipe.stage if stage.name == change.stage), "")
    rule: AtResume = "change"
    if spec.accepts:
        rule = "input"
    elif not change.stage or trains(kind):
        assert spec.at_resume is not None, f"{change.key} does not say whether a resume may change it"
        rule = spec.at_resume
    if rule == "change":
        return None
    way = f"cockpit run --from {run}:{change.stage} --set {change.key}=…"
    if rule in _FIXED or not change.stage or not finished:
        way = "cockpit run RECIPE"
    return _problem(change, REASONS[rule], f"a new run can have it: {way}")


def _problem(change: FieldChange, message: str, hint: str) -> Problem:
    return Problem("--set", 0, change.key, message, _shortened(change.new), f"{_shortened(change.old)}, as now", hint)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _check(source: Source, problems: dict[Problem, None]) -> None:
    """Validate the changed data; every problem is located at the override that made it."""
    data = source.data

    def report_top(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
        problems[source.problem(loc, message, got, allowed, hint)] = None

    check_table(Recipe, {**data, "stage": [FakeStage(name="x")]}, None, report_top)
    for number, stage in enumerate(data.get("stage", [])):
        tag = tag_of_table(stage)
        assert tag is not None, "the stages of a resolved recipe have a type"

        def report(
            loc: KeyPath, message: str, got: str, allowed: str, hint: str, number: int = number, tag: str = tag
        ) -> None:
            problems[source.problem(("stage", number, *loc), message, got, allowed, hint, tag)] = None

        check_table(STAGE_TYPES[tag], stage, tag, report)


def _at_override(problem: Problem, sets: Sequence[str]) -> Problem:
    """A problem at the overrides that made it: the resolved recipe, in which it was found, had none."""
    if problem.path != RESOLVED:
        return problem
    own = [text for text in sets if text.partition("=")[0].strip() == problem.key]
    stage = problem.key.partition(".")[0]
    near = own or [text for text in sets if text.partition(".")[0].strip() == stage] or list(sets)
    return replace(problem, path=" ".join(f"--set {text}" for text in near), line=0)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[FieldChange]:
    found = [
        FieldChange("", spec.path, _text(before.get(spec.path)), _text(after.get(spec.path)))
        for spec in recipe_fields()
        if before.get(spec.path, spec.default) != after.get(spec.path)
    ]
    for old, new in zip(before["stage"], after["stage"], strict=True):
        found += [
            FieldChange(str(new["name"]), spec.path, _text(was), _text(now))
            for spec in fields_of(str(tag_of_table(new)))
            if spec.path not in _AT_LAUNCH and (was := _value(old, spec)) != (now := _value(new, spec))
        ]
    return found


def _value(stage: Mapping[str, Any], spec: FieldSpec) -> Any:
    """A field's value; the default for a field that an older version of the recipe's run did not have."""
    value: Any = stage
    for part in spec.path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return spec.default
        value = value[part]
    return value


def _text(value: Any) -> str:
    return "none" if value is None else spell(_without_none(value))


def _without_none(value: Any) -> Any:
    """TOML has no none: a table of a list, such as a gate, leaves the key out."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
