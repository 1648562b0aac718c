"""Every field of every stage kind as plain data, read from the schema, for forms, messages and the reference."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from recipes.problems import either
from recipes.quantities import exact
from recipes.schema import Recipe
from recipes.setting import AtResume
from recipes.ship.limits import ShipLimits
from recipes.spelling import spell
from recipes.stages.fields import ANY_OUTPUT
from recipes.stages.registry import STAGE_TYPES, output_word

FieldKind = Literal["int", "float", "bool", "choice", "str", "list", "numbers", "integers", "tables", "map"]

IDENTITY = ("kind", "output")
"""Keys that decide the type of a stage; they are not fields."""


TABLES = ("stage", "ship")
"""Tables of a recipe that are no keys at its top."""

_SECTIONS_FIRST = ("Stage", "Source", "Inputs", "Model", "Positions", "LoRA", "Quantization")
_SECTIONS_LAST = ("Precision", "Evaluation", "Samples", "Checkpoints", "Guards", "Retry", "Gates", "Launch")


@dataclass(frozen=True)
class Bounds:
    """Limits of a number, or of the length of a string or a list; None means no limit."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None

    def words(self) -> str:
        """The limits as text, such as `> 0 and ≤ 1`; empty without limits."""
        signs = (("≥", self.ge), (">", self.gt), ("≤", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {exact(limit)}" for sign, limit in signs if limit is not None)


@dataclass(frozen=True)
class FieldSpec:
    """One settable field.

    `path` is dotted for fields of nested tables (`retry.max_attempts`). `kind` is `list` for lists of words (with
    `choices` when only some words are allowed), `numbers` and `integers` for lists of numbers, `map` for a table by any
    names, whose values are `values`, and `tables` for `[[stage.gate]]`, whose fields are in `items`. A `nullable` field
    may be left out, which means "none". `default` is a TOML value, or None without a default. `instead` is a word that
    may replace a list, or with `or_pattern` a regular expression, and `suggests` are usual values that a form offers.
    A `str` with `items` may be a list of tables with these fields instead.
    `at_resume` says whether a resume may change the field of a stage that trains.
    """

    path: str
    kind: FieldKind
    default: Any
    required: bool
    nullable: bool
    choices: tuple[str, ...]
    bounds: Bounds
    unit: str | None
    help: str
    section: str
    advanced: bool
    accepts: tuple[str, ...]
    folder: bool
    new_folder: bool = False
    or_file: bool = False
    file: bool = False
    at_resume: AtResume | None = None
    items: tuple[FieldSpec, ...] = ()
    instead: str = ""
    suggests: tuple[str, ...] = ()
    values: Literal["str", "int", "float"] = "str"
    or_pattern: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values, as text."""
        limits = self.bounds.words()
        if self.kind == "int" and self.choices:
            return either(self.choices)
        if self.kind in ("int", "float"):
            return f"{'a whole number' if self.kind == 'int' else 'a number'}{' ' + limits if limits else ''}"
        if self.kind == "bool":
            return "true or false"
        if self.kind == "choice":
            return either(self.choices)
        if self.kind == "tables":
            return "a list of tables with " + ", ".join(item.path for item in self.items)
        if self.kind in ("numbers", "integers"):
            return f"a list of {'whole numbers' if self.kind == 'integers' else 'numbers'}"
        if self.kind == "map":
            of = {"str": "strings", "int": "whole numbers", "float": "numbers"}[self.values]
            return f"a table; each value is {either(self.choices)}" if self.choices else f"a table of {of}"
        if self.kind == "list":
            some = "one or more of" if self.bounds.min_length else "any of"
            listed = f"a list of {some} {either(self.choices)}" if self.choices else "a list of strings"
            pattern = ", a regular expression" if self.or_pattern else ""
            return f'"{self.instead}"{pattern}, or {listed}' if self.instead else listed
        if self.bounds.pattern == r"^[a-z0-9-]{1,40}$":
            return "1 to 40 characters of a-z, 0-9 and -"
        return self._allowed_text

    @property
    def or_tables(self) -> bool:
        """Whether a list of tables may stand in place of a string."""
        return self.kind == "str" and bool(self.items)

    @property
    def _allowed_text(self) -> str:
        if self.or_tables:
            return f"a string that is not empty, or tables [[stage.{self.path}]]"
        if self.file:
            return f"{', '.join(self.suggests)}, or a path that begins with / ./ ../ or ~/"
        length = f" of at most {self.bounds.max_length} characters" if self.bounds.max_length else ""
        return "a string that is not empty" if self.bounds.min_length else f"a string{length}"

    @property
    def default_words(self) -> str:
        """The default as TOML, `required`, or `none`."""
        if self.required:
            return "required"
        return "none" if self.default is None else spell(self.default)


@cache
def _specs(model: type[BaseModel]) -> tuple[FieldSpec, ...]:
    found: list[FieldSpec] = []
    for name, info in model.model_fields.items():
        if name in IDENTITY or (model is Recipe and name in TABLES):
            continue
        table = _table_of(info.annotation)
        if table is not None:
            found.extend(_nested(name, info, table))
        else:
            found.append(_spec(info.alias or name, info))
    return tuple(found)


def fields_of(tag: str) -> list[FieldSpec]:
    """The fields of a stage type (a key of `STAGE_TYPES`), nested tables flattened, in the order of the schema.

    Raises:
        KeyError: there is no such stage type.
    """
    return list(_specs(STAGE_TYPES[tag]))


def recipe_fields() -> list[FieldSpec]:
    """The keys at the top of a recipe."""
    return list(_specs(Recipe))


def ship_fields() -> list[FieldSpec]:
    """The keys of the table `[ship]`, each with `ship.` before its name."""
    return _nested("ship", Recipe.model_fields["ship"], ShipLimits)


def sections_of(tag: str) -> dict[str, list[FieldSpec]]:
    """The fields of a stage type by section, in the order of forms.

    Name, inputs and model come first, checks and launch last. In a section, advanced fields come last.
    """
    sections: dict[str, list[FieldSpec]] = {}
    for spec in fields_of(tag):
        sections.setdefault(spec.section, []).append(spec)
    place = {name: number - len(_SECTIONS_FIRST) for number, name in enumerate(_SECTIONS_FIRST)}
    place |= {name: number + 1 for number, name in enumerate(_SECTIONS_LAST)}
    ordered = sorted(sections, key=lambda name: place.get(name, 0))
    return {name: sorted(sections[name], key=lambda spec: spec.advanced) for name in ordered}


def keys_of(tag: str) -> tuple[str, ...]:
    """The keys that a stage table of this type may have, `kind` and nested tables included."""
    return tuple(STAGE_TYPES[tag].model_fields)


def inputs_of(tag: str) -> list[FieldSpec]:
    """The fields that name another stage, a path or a hub id."""
    return [spec for spec in fields_of(tag) if spec.accepts]


def _nested(name: str, info: FieldInfo, table: type[BaseModel]) -> list[FieldSpec]:
    """The fields of a nested table with dotted paths; the default of the table overrides those of its fields."""
    whole = info.get_default(call_default_factory=True)
    values = whole.model_dump() if isinstance(whole, BaseModel) else {}
    return [
        FieldSpec(**{**vars(spec), "path": f"{name}.{spec.path}", "default": values.get(spec.path, spec.default)})
        for spec in _specs(table)
    ]


def _spec(path: str, info: FieldInfo) -> FieldSpec:
    plain, nullable = _without_none(info.annotation)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    default = info.get_default(call_default_factory=True)
    items: tuple[FieldSpec, ...] = _tables_instead(info.annotation)
    kind: FieldKind
    choices: tuple[str, ...] = ()
    values: Literal["str", "int", "float"] = "str"
    if typing.get_origin(plain) is list:
        (inner,) = typing.get_args(plain)
        table = _table_of(inner)
        lists: dict[Any, FieldKind] = {float: "numbers", int: "integers"}
        kind, items = ("tables", _specs(table)) if table else (lists.get(inner, "list"), ())
        choices = _choices(inner)
    elif typing.get_origin(plain) is dict:
        inner = typing.get_args(plain)[1]
        kind, choices = "map", _choices(inner)
        values = "int" if inner is int else "float" if inner is float else "str"
    elif typing.get_origin(plain) is Literal:
        choices = _choices(plain)
        kind = "int" if all(isinstance(choice, int) for choice in choices) else "choice"
    else:
        kind = _SCALARS[plain]
    return FieldSpec(
        path=path,
        kind=kind,
        default=None if default is PydanticUndefined else default,
        required=info.is_required(),
        nullable=nullable,
        choices=choices,
        bounds=_bounds(info),
        unit=typing.cast("str | None", extra.get("unit")),
        help=info.description or "",
        section=str(extra.get("section", "")),
        advanced=bool(extra.get("advanced", False)),
        accepts=_accepts(tuple(typing.cast("list[str]", extra.get("accepts", [])))),
        folder=bool(extra.get("folder", False)),
        new_folder=bool(extra.get("new_folder", False)),
        or_file=bool(extra.get("or_file", False)),
        file=bool(extra.get("file", False)),
        at_resume=typing.cast("AtResume | None", extra.get("at_resume")),
        items=items,
        instead=str(extra.get("instead", "")),
        suggests=tuple(typing.cast("list[str]", extra.get("suggests", []))),
        values=values,
        or_pattern=bool(extra.get("or_pattern", False)),
    )


def _accepts(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(output_word, STAGE_TYPES))) if words == ANY_OUTPUT else words


_SCALARS: dict[Any, FieldKind] = {int: "int", float: "float", bool: "bool", str: "str"}


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        rest = [_bare(option) for option in typing.get_args(annotation) if option is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(annotation))
    return annotation, False


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def _tables_instead(annotation: Any) -> tuple[FieldSpec, ...]:
    """The fields of the tables that a union allows in place of a string."""
    if typing.get_origin(annotation) not in (types.UnionType, typing.Union):
        return ()
    lists = [option for option in map(_bare, typing.get_args(annotation)) if typing.get_origin(option) is list]
    tables = [_table_of(typing.get_args(option)[0]) for option in lists]
    return next((_specs(table) for table in tables if table is not None), ())


def _table_of(annotation: Any) -> type[BaseModel] | None:
    plain, _ = _without_none(annotation)
    return plain if isinstance(plain, type) and issubclass(plain, BaseModel) else None


def _choices(annotation: Any) -> tuple[Any, ...]:
    plain = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    return typing.get_args(plain) if typing.get_origin(plain) is Literal else ()


def _bounds(info: FieldInfo) -> Bounds:
    names = Bounds.__dataclass_fields__
    found = {
        name: getattr(item, name) for item in info.metadata for name in names if getattr(item, name, None) is not None
    }
    return Bounds(**found)
