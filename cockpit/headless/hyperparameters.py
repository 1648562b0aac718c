"""The fields of a run's stages: their values, and whether the recipe, `--set`, a default or a resume decided them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.text.safe_text import safe_text
from engines.files import read_regular_text
from engines.run_dir.paths import RunDir, RunDirError
from recipes.fields import FieldSpec, fields_of
from recipes.problems import OperatorError
from recipes.spelling import spell
from recipes.stages.registry import kind_of, tag_of_stage
from recipes.toml_read import parse

EDITED = "recipe.toml was edited after the launch; the run uses recipe.json"
DEFAULT = "default"
RESUME = "resume"
_MAX_RECIPE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class FieldValue:
    """One field: its value, and its origin: recipe, defaults, --set, resume, or default."""

    stage: str
    field: str
    value: Any
    origin: str

    @property
    def text(self) -> str:
        """The value as TOML, or `none`; not safe to print before `safe_text`."""
        return "none" if self.value is None else spell(_without_none(self.value))


def field_values(run: RunDir) -> list[FieldValue]:
    """Every field of every stage, in the order of the run; empty if the run's recipe cannot be read."""
    try:
        plan = RunRecipe.read(run)
    except RunDirError:
        return []
    origins = plan.origins if plan.origins is not None else _guessed(run, plan)
    changed = {(change.stage, change.field) for change in plan.changes}
    found = []
    for name in plan.order:
        stage = plan.stage(name)
        dumped = stage.model_dump(mode="json")
        for spec in fields_of(tag_of_stage(stage)):
            if spec.path == "name":
                continue
            origin = origins.get(name, {}).get(spec.path, DEFAULT)
            origin = RESUME if (name, spec.path) in changed else origin
            found.append(FieldValue(name, spec.path, _dig(dumped, spec.path), origin))
    return found


def field_lines(run: RunDir, *, every: bool) -> list[str]:
    """The fields for `cockpit show`; without `every`, only those that were set."""
    values = field_values(run)
    shown = [value for value in values if every or value.origin != DEFAULT]
    width = max((len(f"{value.stage}.{value.field}") for value in shown), default=0)
    lines = [
        f"  {safe_text(f'{value.stage}.{value.field}', 80):<{min(width, 80)}}  {safe_text(value.text, 120)}"
        f"  ({value.origin})"
        for value in shown
    ]
    left_out = len(values) - len(shown)
    if left_out:
        lines.append(f"  and {left_out} fields at their defaults: cockpit show {run.id} --fields")
    return ["fields, with what set them:", *lines] if lines else []


def _guessed(run: RunDir, plan: RunRecipe) -> dict[str, dict[str, str]]:
    """Origins of a run of an older version, from its recipe.toml: what it does not have and is no default was set by
    `--set`."""
    try:
        data, _ = parse(read_regular_text(run.recipe_toml, _MAX_RECIPE_BYTES), run.recipe_toml)
    except (OSError, ValueError, OperatorError):
        data = {}
    tables = data.get("stage")
    own = {t.get("name"): t for t in tables if isinstance(t, dict)} if isinstance(tables, list) else {}
    return {name: dict(_guessed_stage(plan, name, own.get(name, {}), data)) for name in plan.order}


def _guessed_stage(plan: RunRecipe, name: str, own: dict[str, Any], data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    stage = plan.stage(name)
    tag = tag_of_stage(stage)
    dumped = stage.model_dump(mode="json")
    laid = data.get("defaults")
    defaults = laid.get(kind_of(tag), {}) if isinstance(laid, dict) else {}
    for spec in fields_of(tag):
        value = _dig(dumped, spec.path)
        for table, origin in ((own, "recipe"), (defaults, "defaults")):
            given = _dig(table, spec.path)
            if given is not None:
                yield spec.path, origin if given == value or _is_spelled_otherwise(spec) else "--set"
                break
        else:
            if value != spec.default:
                yield spec.path, "--set"


def _is_spelled_otherwise(spec: FieldSpec) -> bool:
    """Whether the resolved value may be spelled differently: paths become absolute, tables get all their keys."""
    return bool(spec.accepts) or spec.folder or spec.kind == "tables"


def _dig(table: Any, path: str) -> Any:
    for part in path.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    return table


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
