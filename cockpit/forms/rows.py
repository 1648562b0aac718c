"""What a recipe's form is made of: rows, sections and heads, and the values behind them in the TOML data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cockpit.forms.problems import RECIPE
from cockpit.forms.values import NO_VALUE, NoValue
from recipes.fields import FieldSpec, sections_of
from recipes.problems import Problem, RecipeError
from recipes.stages.registry import STAGE_TYPES, output_word, tag_of_table
from recipes.toml_read import parse
from recipes.toml_scan import KeyPath


@dataclass(frozen=True)
class Row:
    """One field as it stands.

    `text` is what is shown: the stage's own value, else the one laid under it, else the default. `origin` says which:
    stage, defaults, default, or "" when there is no value. `was` is the text on disk when that differs.
    """

    key: str
    spec: FieldSpec
    text: str
    origin: str
    was: str | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Head:
    """A stage (or the recipe itself) with how much of it is changed and wrong. `tag` is None for an unknown kind."""

    place: int
    name: str
    kind: str
    tag: str | None
    changed: int
    problems: int


@dataclass(frozen=True)
class SectionHead:
    """A section of a stage with how much of it is changed and wrong."""

    name: str
    changed: int
    problems: int


@dataclass(frozen=True)
class Spot:
    """Where a problem is shown: a stage's place, a section of it and a row's key (either may be empty)."""

    place: int
    section: str
    key: str


@cache
def ordered_sections(tag: str) -> dict[str, list[FieldSpec]]:
    """The sections of a stage type as people fill them in: name, inputs, what the kind adds, what it shares, the rest."""
    sections = sections_of(tag)
    everywhere = set.intersection(*(set(sections_of(other)) for other in STAGE_TYPES))
    own = set(STAGE_TYPES[tag].__annotations__)

    def rank(name: str) -> int:
        specs = sections[name]
        if any(spec.path == "name" for spec in specs):
            return 0
        if any(spec.accepts for spec in specs):
            return 1
        if name in everywhere:
            return 4
        return 2 if any(spec.path.partition(".")[0] in own for spec in specs) else 3

    return {name: sections[name] for name in sorted(sections, key=rank)}


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same(one: Any, other: Any) -> bool:
    """Whether two values are written alike; NaN is never the same, and true is not 1."""
    if isinstance(one, NoValue) or isinstance(other, NoValue):
        return isinstance(one, NoValue) and isinstance(other, NoValue)
    return type(one) is type(other) and bool(one == other)


def data_of(text: str, path: Path) -> dict[str, Any]:
    """The TOML data of a text; nothing when it is not TOML."""
    try:
        return parse(text, path)[0]
    except RecipeError:
        return {}


def stages_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The stage tables of a recipe's data."""
    stages = data.get("stage")
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def toml_path(place: int, key: str) -> KeyPath:
    """Where a row's key stands in the text."""
    return (key,) if place == RECIPE else ("stage", place, *key.split("."))


def _dig(table: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(table, dict) or part not in table:
            return NO_VALUE
        table = table[part]
    return table


def own_value(data: dict[str, Any], place: int, key: str) -> Any:
    """What the stage itself says for a key; `NO_VALUE` when it does not name it."""
    if place == RECIPE:
        return data.get(key, NO_VALUE)
    stages = stages_of(data)
    return _dig(stages[place], key.split(".")) if place < len(stages) else NO_VALUE


def effective_value(data: dict[str, Any], place: int, spec: FieldSpec) -> tuple[Any, str]:
    """The value that counts and where it is from: stage, defaults, default, or "" for none."""
    own = own_value(data, place, spec.path)
    if not isinstance(own, NoValue):
        return own, "stage"
    stages = stages_of(data)
    if 0 <= place < len(stages):
        laid = _dig(data.get("defaults"), [str(stages[place].get("kind")), *spec.path.split(".")])
        if not isinstance(laid, NoValue):
            return laid, "defaults"
    return (spec.default, "default") if spec.default is not None else (NO_VALUE, "")


def produces(stage: dict[str, Any]) -> str:
    """What a stage's table makes, as a word that `accepts` lists know; empty for an unknown kind."""
    tag = tag_of_table(stage)
    if tag is None:
        return ""
    return output_word(tag)
