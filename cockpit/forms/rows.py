"""What a recipe's form is made of: rows, sections and heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from recipes.fields import FieldSpec, sections_of
from recipes.problems import Problem
from recipes.stages.registry import STAGE_TYPES


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
    """The sections of a stage type as people fill them in: name, inputs, what the kind adds, what it shares, the
    rest."""
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
