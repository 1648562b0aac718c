"""The parts of a recipe's form: rows, sections and heads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from recipes.fields import Bounds, FieldSpec, keys_of, sections_of
from recipes.problems import Problem
from recipes.stages.registry import STAGE_KINDS, STAGE_TYPES, kind_of


@dataclass(frozen=True)
class Row:
    """One field with its current value.

    `text` is the effective value: the stage's, else that of `defaults`, else the default. `origin` names its source:
    stage, defaults, default, or "" without a value. `was` is the file's text, if it differs.
    """

    key: str
    spec: FieldSpec
    text: str
    origin: str
    was: str | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Head:
    """A stage (or the recipe) with its numbers of changed rows and problems. `tag` is None for an unknown kind."""

    place: int
    name: str
    kind: str
    tag: str | None
    changed: int
    problems: int


@dataclass(frozen=True)
class SectionHead:
    """A section of a stage with its numbers of changed rows and rows with problems."""

    name: str
    changed: int
    problems: int


@dataclass(frozen=True)
class Spot:
    """Where a problem is shown: a stage's position, a section and a row's key (section and key may be empty)."""

    place: int
    section: str
    key: str


@cache
def ordered_sections(tag: str) -> dict[str, list[FieldSpec]]:
    """The sections of a stage type in the order of filling in: name, inputs, fields of this kind only, fields shared
    with some kinds, fields of all kinds."""
    sections = sections_of(tag)
    everywhere = set.intersection(*(set(sections_of(other)) for other in STAGE_TYPES))
    others = {key for other in STAGE_TYPES if kind_of(other) != kind_of(tag) for key in keys_of(other)}
    own = set(keys_of(tag)) - others

    def rank(name: str) -> int:
        specs = sections[name]
        if any(spec.path == "name" for spec in specs):
            return 0
        if any(spec.accepts for spec in specs):
            return 1
        if name in everywhere:
            return 4
        return 2 if any(spec.path.partition(".")[0] in own for spec in specs) else 3

    output = output_row(kind_of(tag))
    found = {name: list(sections[name]) for name in sorted(sections, key=rank)}
    if output is not None:
        found[output.section].append(output)
    return found


@cache
def output_row(kind: str) -> FieldSpec | None:
    """The row of the key `output`, which selects the type of a stage; None for a kind of one type, or an unknown one.

    It is no field of a type, because the fields depend on it.
    """
    row = STAGE_KINDS.get(kind)
    if row is None or len(row.types) == 1:
        return None
    return FieldSpec(
        path="output",
        kind="choice",
        default=row.default_output or None,
        required=not row.default_output,
        nullable=False,
        choices=tuple(row.types),
        bounds=Bounds(),
        unit=None,
        help="What the stage makes. It decides which fields the stage has.",
        section="Stage",
        advanced=False,
        accepts=(),
        folder=False,
    )
