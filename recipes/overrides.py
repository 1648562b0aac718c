"""Overrides such as `--set atlas.learning_rate=2e-4`: each changes one value of a recipe, named by stage and field."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any

from recipes.fields import FieldSpec, fields_of, keys_of, recipe_fields
from recipes.problems import OperatorError, Problem, closest, either, printable
from recipes.source import Source
from recipes.stages.registry import STAGE_KINDS, STAGE_TYPES, kind_of, output_word, tag_of_table, tags_of
from recipes.toml_scan import MAX_BARE_CHARACTERS, MAX_KEY_PARTS, KeyPath, ScanError, scan

MAX_CHARACTERS = 64 * 1024
FIXED = ("name", "kind", "output")
"""Keys that identify a stage."""


def apply_overrides(source: Source, sets: Sequence[str]) -> list[Problem]:
    """Write overrides into `source.data` in their order, and record where the values came from.

    Returns:
        The problems of overrides that could not be applied. Values are checked later, with the recipe.
    """
    problems: list[Problem] = []
    for text in sets:
        try:
            _apply(source, text)
        except OperatorError as error:
            key = text.partition("=")[0].strip()
            problems.append(Problem(f"--set {text}", 0, key, error.message, hint=error.hint))
    return problems


def parse_value(text: str) -> Any:
    """A value typed on a command line, as TOML if it parses, else as a string.

    Raises:
        OperatorError: it is empty, too long, or begins like a TOML list, table or string and does not parse.
    """
    text = text.strip()
    if not text:
        raise OperatorError("no value", "write KEY=VALUE")
    if len(text) > MAX_CHARACTERS:
        raise OperatorError("the value is too long", f"at most {MAX_CHARACTERS} characters")
    if len(text) > MAX_BARE_CHARACTERS and text[0] not in "[{\"'":
        return text  # no number, date or word of TOML is as long: a path, or a sentence
    try:
        if "\n" not in text and "\r" not in text:
            scan(f"value = {text}")
            found = tomllib.loads(f"value = {text}")
            if list(found) == ["value"] and "#" not in text.replace(str(found["value"]), ""):
                return found["value"]
    except ScanError as error:
        if error.hostile:
            raise OperatorError(f"limit exceeded: {error.message}") from None
    except (ValueError, RecursionError):
        pass
    if text[0] in "[{\"'":
        raise OperatorError("the value is not TOML", """quote it for the shell, as in '["Q8_0"]'""")
    return text


def _apply(source: Source, text: str) -> None:
    key, sign, value_text = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not sign or not all(parts) or len(parts) > MAX_KEY_PARTS:
        raise OperatorError(
            "not an override", "write STAGE.FIELD=VALUE, or FIELD=VALUE for a field of the recipe itself"
        )
    path, specs, others = _target(source, parts)
    field_path = ".".join(parts[len(parts) - _field_parts(parts) :])
    spec = _spec(specs, field_path, others)
    value = parse_value(value_text)
    word = spec is not None and (
        spec.kind in ("str", "choice") or (spec.kind == "map" and spec.values == "str" and field_path != spec.path)
    )
    if word and not isinstance(value, (str, bool, list, dict)):
        value = value_text.strip()  # a name such as 2026-11-20 is a string
    _write(source.data, path, value)
    source.override(path, text)


def _field_parts(parts: Sequence[str]) -> int:
    """The number of parts at the end that name the field."""
    if len(parts) == 1:
        return 1
    return len(parts) - 2 if parts[0] == "defaults" else len(parts) - 1


def _target(source: Source, parts: list[str]) -> tuple[KeyPath, list[FieldSpec], list[str]]:
    """The path of an override, the fields that are allowed there, and other keys of that table."""
    stages = source.data.get("stage")
    tables = stages if isinstance(stages, list) else []
    names = [table.get("name") for table in tables if isinstance(table, dict)]
    if len(parts) == 1:
        specs = recipe_fields()
        if parts[0] in names:
            raise OperatorError("this is a stage, not a field", f"write {printable(parts[0])}.FIELD=VALUE")
        return (parts[0],), specs, []
    if parts[0] == "defaults":
        if parts[1] not in STAGE_KINDS:
            raise OperatorError(
                "unknown stage kind", closest(parts[1], STAGE_KINDS) or "kinds: " + ", ".join(STAGE_KINDS)
            )
        if len(parts) < 3:
            raise OperatorError("this is a stage kind, not a field", f"write defaults.{parts[1]}.FIELD=VALUE")
        tags = tags_of(parts[1])
        known = [spec for tag in tags for spec in fields_of(tag)]
        return tuple(parts), [spec for spec in known if spec.path != "name"], _tables(tags)
    if parts[0] not in names:
        known_names = [name for name in names if isinstance(name, str)]
        hint = closest(parts[0], [*known_names, "defaults"]) or "stages: " + ", ".join(known_names[:12])
        raise OperatorError("no stage has this name", printable(hint, 400))
    number = next(i for i, table in enumerate(tables) if isinstance(table, dict) and table.get("name") == parts[0])
    if parts[1] in FIXED:
        raise OperatorError("an override cannot change the name, kind or output of a stage", "edit the recipe file")
    tag = tag_of_table(tables[number])
    if tag is None:
        return ("stage", number, *parts[1:]), [], []
    return ("stage", number, *parts[1:]), fields_of(tag), _tables([tag])


def _tables(tags: Iterable[str]) -> list[str]:
    """The keys of the types that are tables of fields, such as `retry`."""
    nested = {spec.path.split(".")[0] for tag in tags for spec in fields_of(tag) if "." in spec.path}
    return [key for tag in tags for key in keys_of(tag) if key in nested]


def _spec(specs: list[FieldSpec], field_path: str, tables: list[str]) -> FieldSpec | None:
    """The field with this path; None for a table of fields.

    Raises:
        OperatorError: there is no such field; the hint names a similar one, or the kind that has it.
    """
    if not specs or field_path in tables:
        return None
    for spec in specs:
        if spec.path == field_path or (spec.kind == "map" and field_path.startswith(f"{spec.path}.")):
            return spec
    hint = belongs(field_path) or near_field(field_path, specs)
    raise OperatorError("no such field", hint or "recipes/REFERENCE.md lists the fields of every kind")


def near_field(key: str, specs: Sequence[FieldSpec]) -> str:
    """A hint with the field that was probably meant: by name, or the only one with the word in its help (`rank`: r)."""
    hint = closest(key, [spec.path for spec in specs])
    if hint or len(key) < 3:
        return hint
    found = [spec.path for spec in specs if key.lower() in re.findall(r"[a-z_]+", spec.help.lower())]
    return closest(found[0], found) if len(set(found)) == 1 else ""


def belongs(field_path: str) -> str:
    """A hint with the kinds that have a field with this path, and the output that has it where a kind has several;
    empty if no kind has one."""
    tags = [tag for tag in STAGE_TYPES if any(spec.path == field_path for spec in fields_of(tag))]
    kinds = dict.fromkeys(kind_of(tag) for tag in tags)
    words = []
    for kind in kinds:
        having = [tag for tag in tags_of(kind) if tag in tags]
        outputs = either([output_word(tag) for tag in having])
        words.append(kind if having == tags_of(kind) else f"{kind} with output = {outputs}")
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"it is a field of {listed}" if words else ""


def _write(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    here: Any = data
    for part in path[:-1]:
        if isinstance(part, str):
            below = here.get(part)
            here[part] = below if isinstance(below, (dict, list)) else {}
        here = here[part]
    here[path[-1]] = value
