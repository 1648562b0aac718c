"""Turns pydantic's errors into problems: what is wrong, what was got, what is allowed, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from recipes.fields import FieldSpec, fields_of, keys_of, recipe_fields, ship_fields
from recipes.overrides import belongs, near_field
from recipes.problems import closest, either, kind_of_value, shown
from recipes.schema import Recipe
from recipes.stages.registry import kind_of
from recipes.toml_scan import KeyPath

Report = Callable[[KeyPath, str, str, str, str], None]
"""Called with the path inside the validated table, the message, got, allowed and hint."""

_OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"}
_EMPTY = {"too_short", "string_too_short"}
_LONG = {"too_long", "string_too_long"}


def check_table(model: type[BaseModel], table: Mapping[str, Any], tag: str | None, report: Report) -> None:
    """Validate a table and report every error in it.

    pydantic runs checks across fields only on a table without other errors. Therefore the table is validated again
    without the wrong keys, so that one error does not hide another.
    """
    findings = _findings(model, table)
    for finding in findings:
        _explain(finding, tag, report)
    wrong = {finding["loc"][0] for finding in findings if finding["loc"]}
    if wrong:
        rest = {key: value for key, value in table.items() if key not in wrong}
        if "name" in wrong:
            rest["name"] = "x"
        if "name" in rest:
            for finding in _findings(model, rest):
                # A check of a removed key would report that it is missing, which is not an error of the operator.
                if not finding["loc"] and not set(re.findall(r"\w+", finding["msg"])) & wrong:
                    _explain(finding, tag, report)


def check_values(model: type[BaseModel], table: Mapping[str, Any], tag: str, report: Report) -> None:
    """Validate the values of a table that may be incomplete."""
    for finding in _findings(model, table):
        if finding["type"] != "missing" or len(finding["loc"]) > 1:
            _explain(finding, tag, report)


def _findings(model: type[BaseModel], table: Mapping[str, Any]) -> Sequence[Any]:
    try:
        model.model_validate(dict(table))
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _explain(finding: Any, tag: str | None, report: Report) -> None:
    loc = _without_form(tuple(finding["loc"]), tag)
    kind, value = finding["type"], finding["input"]
    if kind == "value_error":
        for line in str(finding["ctx"]["error"]).splitlines():
            _across_fields(loc, line, report)
        return
    if kind == "extra_forbidden":
        _unknown_key(loc, tag, report)
        return
    spec = _spec_at(tag, loc)
    allowed = _allowed(tag, loc, spec)
    got = shown(value) if kind != "missing" else ""
    report(loc, _message(kind, spec), got, allowed, _hint(kind, value, spec))


def _without_form(loc: KeyPath, tag: str | None) -> KeyPath:
    """A path without the word for the form of a field that has two; see `FieldSpec.or_tables`."""
    if len(loc) > 1 and any(spec.path == loc[0] and spec.or_tables for spec in _specs(tag)):
        return (loc[0], *loc[2:])
    return loc


def _message(kind: str, spec: FieldSpec | None) -> str:
    if kind == "missing":
        return f"required: {_first_clause(spec.help)}" if spec and spec.help else "required"
    if kind == "literal_error":
        return "not one of the choices"
    if kind == "string_pattern_mismatch":
        return "not a valid name"
    if kind == "finite_number":
        return "not a finite number"
    if kind in _OUT_OF_RANGE:
        return "out of range"
    if kind in _EMPTY:
        return "too short"
    return "too long" if kind in _LONG else "wrong type"


def _first_clause(help_text: str) -> str:
    """A help text up to its first semicolon, because semicolons separate the parts of a message."""
    clause = help_text.partition(";")[0].rstrip(".")
    return clause[:1].lower() + clause[1:]


def _hint(kind: str, value: Any, spec: FieldSpec | None) -> str:
    """The value that was probably meant, if there is an obvious one."""
    if kind == "literal_error" and spec and isinstance(value, str):
        return closest(value, [str(choice) for choice in spec.choices])
    if kind == "missing" or spec is None:
        return ""
    if spec.kind in ("int", "float") and isinstance(value, str) and _is_number(value):
        return f"did you mean {value.strip()} without quotes?"
    if spec.kind == "int" and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"did you mean {int(value)}?"
    if spec.kind == "bool" and value in (0, 1, "true", "false"):
        return f"did you mean {'true' if value in (1, 'true') else 'false'}?"
    if spec.kind in ("numbers", "integers") and isinstance(value, int | float) and not isinstance(value, bool):
        return f"did you mean [{shown(value)}]?"
    if spec.kind == "list" and isinstance(value, str):
        return f"did you mean [{shown(value)}]?"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_ONE = {"str": "a string", "int": "a whole number", "float": "a number"}


def _allowed(tag: str | None, loc: KeyPath, spec: FieldSpec | None) -> str:
    if spec is None:
        keys = _keys_below(tag, loc)
        return f"a table with {', '.join(keys)}" if keys else ""
    if spec.kind == "map" and loc[-1] != spec.path:
        return either(spec.choices) if spec.choices else _ONE[spec.values]
    if isinstance(loc[-1], int):
        words = {"tables": "a table", "str": "a table", "numbers": "a number", "integers": "a whole number"}
        return either(spec.choices) if spec.choices else words.get(spec.kind, "a string")
    return spec.allowed


def _across_fields(loc: KeyPath, text: str, report: Report) -> None:
    """Split a validator's `key — what; got …; allowed: …`."""
    key, dash, rest = text.partition(" — ")
    if not dash:
        report(loc, text, "", "", "")
        return
    what, *more = [part.strip() for part in rest.split("; ")]
    named = {"got": "", "allowed": ""}
    hints = []
    for part in more:
        word = part.split(" ")[0].rstrip(":")
        if word in named:
            named[word] = part[len(word) :].lstrip(": ")
        else:
            hints.append(part)
    parts = key.split(".")
    below = parts[1:] if loc[-1:] == (parts[0],) else parts  # a validator of one field is at that field already
    report((*loc, *below), what, named["got"], named["allowed"], "; ".join(hints))


def _unknown_key(loc: KeyPath, tag: str | None, report: Report) -> None:
    key = str(loc[-1])
    keys = _keys_below(tag, loc[:-1])
    nested = [spec.path for spec in _specs(tag) if spec.path.endswith(f".{key}")] if len(loc) == 1 else []
    hint = f"did you mean {nested[0]}?" if nested else ""
    # A name of one letter, such as r for a rank, resembles no word; its description does.
    letters = [spec.path for spec in _specs(tag) if len(spec.path) == 1 and _first_word(spec.help) == key.lower()]
    near = f"did you mean {letters[0]}?" if letters and len(loc) == 1 else closest(key, keys)
    near = near or (near_field(key, _specs(tag)) if len(loc) == 1 else "")
    hint = hint or (belongs(key) if len(loc) == 1 else "") or near
    where = kind_of(tag) if tag else "the recipe"
    message = f"{where} has no such key" if len(loc) == 1 else f"{loc[-2]} has no such key"
    if isinstance(loc[-2] if len(loc) > 1 else "", int):
        message = f"{loc[-3]} has no such key"
    allowed = ", ".join(keys) if len(keys) <= 8 else ""
    report(loc, message, "", allowed, hint or ("" if allowed else "recipes/REFERENCE.md lists the keys"))


def _first_word(text: str) -> str:
    return text.lower().partition(" ")[0]


def _specs(tag: str | None) -> list[FieldSpec]:
    return fields_of(tag) if tag else [*recipe_fields(), *ship_fields()]


def _keys_below(tag: str | None, loc: KeyPath) -> list[str]:
    """The keys of the table at `loc`."""
    names = [part for part in loc if isinstance(part, str)]
    if not names:
        return (
            list(keys_of(tag))
            if tag
            else [info.alias or name for name, info in Recipe.model_fields.items()] + ["defaults"]
        )
    start = names[0] + "."
    below = [spec.path.removeprefix(start) for spec in _specs(tag) if spec.path.startswith(start)]
    tables = [spec for spec in _specs(tag) if spec.path == names[0] and spec.items]
    return below or [item.path for table in tables for item in table.items]


def _spec_at(tag: str | None, loc: KeyPath) -> FieldSpec | None:
    names = [part for part in loc if isinstance(part, str)]
    for spec in _specs(tag):
        if spec.path == ".".join(names) or (spec.kind == "map" and names[:1] == [spec.path] and len(names) == 2):
            return spec
        if spec.items and names[:1] == [spec.path] and len(names) == 2:
            return next((item for item in spec.items if item.path == names[1]), None)
    return None


def kind_words(value: Any) -> str:
    """A value and its type, for a value that should be a table."""
    return f"{kind_of_value(value)}: {shown(value)}"
