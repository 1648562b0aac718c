"""Generates `REFERENCE.md`, `recipe.schema.json` and two tables of `docs/`: run `python -m recipes.reference`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.fields import FieldSpec, fields_of, inputs_of, recipe_fields, sections_of, ship_fields
from recipes.file_types import FILE_TYPES, FileType
from recipes.quantities import exact
from recipes.schema import SCHEMA
from recipes.spelling import spell
from recipes.stages.fields import StageFields
from recipes.stages.registry import STAGE_KINDS, STAGE_TYPES, kind_of, output_word, tags_of

FOLDER = Path(__file__).resolve().parent
REFERENCE = FOLDER / "REFERENCE.md"
JSON_SCHEMA = FOLDER / "recipe.schema.json"
CHECKOUT = FOLDER.parent
PACKAGES = ("cockpit", "engines", "exporters", "recipes")
_TABLE_MARK = "<!-- generated: python -m recipes.reference -->\n"
"""The line before and after a generated table in a page of `docs/`."""

_INTRODUCTION = """# Every field of a recipe

A recipe is a TOML file: a name and a list of stages, each with a `kind`. This page is generated from the schema by
`python -m recipes.reference`.

```toml
schema = 1                      # version of the recipe format
name = "example"

[defaults.finetune]             # for every stage of this kind; a stage's own key wins, and a list replaces a list
learning_rate = 1e-4

[[stage]]
name = "atlas"                  # a-z, 0-9 and -, at most 40 characters; other stages use it as an input
kind = "finetune"
model = "org/name"              # a bare word is a stage of this recipe; /x ./x ../x ~/x is a path, relative to the
data = "./questions"            # folder of the recipe; org/name is a hub id
```

On the command line, `--set atlas.learning_rate=2e-4`, `--set defaults.finetune.learning_rate=2e-4` and
`--set name=other` change one value each. A dotted name such as `retry.max_attempts` is a key of a table: write
`[stage.retry]` with `max_attempts = 2` below the stage's other keys, or `retry.max_attempts = 2` among them.
"""

_SHIP_INTRODUCTION = """\
The limits of `cockpit ship RUN`, in a recipe or in a file of their own (`--limits FILE`). Nothing in a run reads them,
and `--set` does not change them."""

_FILE_TYPES_INTRODUCTION = """\
The values of `file_types`, as llama.cpp names them. Bits per weight are those of the tensor type that most matrices
get. The usual mean KL is that of Llama 3 8B on Wikitext-2, from llama.cpp's tools/perplexity/README.md; the measured KL
of a file is compared with it. The stage fails when the mean KL of a file reaches the limit; the KL of a type without a
limit is only reported."""


def reference_text() -> str:
    """The text of `REFERENCE.md`."""
    parts = [_INTRODUCTION, "## The recipe\n\n" + _table(recipe_fields())]
    parts.append(f"## `[ship]`\n\n{_SHIP_INTRODUCTION}\n\n" + _table(_ship_keys()))
    for tag, model in STAGE_TYPES.items():
        kind, output = kind_of(tag), output_word(tag)
        title = f'kind = "{kind}"' + (f', output = "{output}"' if tag != kind else "")
        parts.append(f"## `{title}`\n\n{_summary(model)}\n\nOutput: {output}.")
        parts.extend(f"### {tag}: {section}\n\n{_table(specs)}" for section, specs in sections_of(tag).items())
    parts.append(f"## GGUF file types\n\n{_FILE_TYPES_INTRODUCTION}\n\n{_file_types()}")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _ship_keys() -> list[FieldSpec]:
    return [replace(spec, path=spec.path.removeprefix("ship.")) for spec in ship_fields()]


def stages_table() -> str:
    """A table with a row for each stage type: its inputs, by their `accepts` lists, and its output."""
    lines = ["| kind | inputs | output | |", "|---|---|---|---|"]
    for tag, model in STAGE_TYPES.items():
        kind, output = kind_of(tag), output_word(tag)
        name = f'`{kind}`, `output = "{output}"`' if tag != kind else f"`{kind}`"
        lines.append(f"| {name} | {_input_words(tag)} | {output} | {_summary(model)} |")
    return "\n".join(lines) + "\n"


def _input_words(tag: str) -> str:
    words = list(dict.fromkeys(word for spec in inputs_of(tag) for word in spec.accepts))
    if set(words) >= {output_word(other) for other in STAGE_TYPES}:
        return "anything"
    places = [spec for spec in fields_of(tag) if spec.folder and spec.required]
    folders = ["a file or a folder" if spec.or_file else "a folder" for spec in places]
    return ", ".join([*folders, *words])


def rooms_table() -> str:
    """A table with a row for each folder of code: the first line of its `__init__.py`."""
    lines = ["| room | job |", "|---|---|"]
    for package in PACKAGES:
        for init in sorted((CHECKOUT / package).rglob("__init__.py")):
            job = (ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            lines.append(f"| `{init.parent.relative_to(CHECKOUT)}/` | {job} |")
    return "\n".join(lines) + "\n"


def page_texts() -> dict[Path, str]:
    """The pages of a checkout that contain a generated table, with a fresh table; none in an installed package."""
    tables = {CHECKOUT / "docs" / "recipes.md": stages_table, CHECKOUT / "docs" / "files.md": rooms_table}
    return {
        page: _with_table(page.read_text(encoding="utf-8"), table()) for page, table in tables.items() if page.is_file()
    }


def _with_table(text: str, table: str) -> str:
    before, mark, rest = text.partition(_TABLE_MARK)
    _, end, after = rest.partition(_TABLE_MARK)
    assert end, f"the page must contain two lines {_TABLE_MARK.strip()}"
    return f"{before}{mark}{table}{end}{after}"


def _summary(model: type[StageFields]) -> str:
    return " ".join((model.__doc__ or "").split())


def json_schema_text() -> str:
    """The text of `recipe.schema.json`: a recipe as written, before defaults are applied to its stages."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 7, which taplo and other TOML editors read).

    Only `name`, `kind` and, where there is a choice, `output` are required in a stage, because `[defaults.<kind>]` may
    set any other required field. The loader checks those.
    """
    top = {spec.path: _property(spec) for spec in recipe_fields()}
    top["schema"] = {"const": SCHEMA, "description": "Version of the recipe format."}
    top["ship"] = _object(_properties(_ship_keys()), [])
    top["ship"]["description"] = "What a file of the run must have shown before it ships."
    stages = [{"$ref": f"#/definitions/{tag}"} for tag in STAGE_TYPES]
    top["stage"] = {"type": "array", "minItems": 1, "maxItems": 256, "items": {"oneOf": stages}}
    top["defaults"] = _object({kind: _defaults(kind) for kind in STAGE_KINDS}, [])
    top["defaults"]["description"] = "Default values for every stage of a kind."
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Recipe",
        **_object(top, ["schema", "name", "stage"]),
        "definitions": {tag: _stage(tag) for tag in STAGE_TYPES},
    }


def _stage(tag: str) -> dict[str, Any]:
    kind = kind_of(tag)
    identity: dict[str, Any] = {"kind": {"const": kind, "description": _summary(STAGE_TYPES[tag])}}
    if "output" in STAGE_TYPES[tag].model_fields:
        identity["output"] = {"const": output_word(tag), "description": "What the stage makes."}
    required = [key for key in identity if key != "output" or tag != kind]  # a default output need not be named
    return _object({**identity, **_properties(fields_of(tag))}, ["name", *required])


def _defaults(kind: str) -> dict[str, Any]:
    """The fields of all types of the kind, except `name`, which every stage sets itself."""
    merged: dict[str, Any] = {}
    for tag in tags_of(kind):
        for key, value in _properties(fields_of(tag)).items():
            merged.setdefault(key, value)
    return _object({key: value for key, value in merged.items() if key != "name"}, [])


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    needed = {"required": required} if required else {}
    return {"type": "object", "properties": properties, **needed, "additionalProperties": False}


def _properties(specs: Iterable[FieldSpec]) -> dict[str, Any]:
    """The properties of a table; dotted fields become nested tables."""
    found: dict[str, Any] = {}
    for spec in specs:
        table, dot, key = spec.path.rpartition(".")
        if dot:
            found.setdefault(table, _object({}, []))["properties"][key] = _property(spec)
        else:
            found[spec.path] = _property(spec)
    return found


def _property(spec: FieldSpec) -> dict[str, Any]:
    """One field: its type, limits, default and help text."""
    unit = f" Unit: {spec.unit}." if spec.unit else ""
    result: dict[str, Any] = {"description": spec.help + unit}
    if spec.kind in _JSON_TYPES:
        result["type"] = _JSON_TYPES[spec.kind]
    if spec.kind == "choice":
        result["enum"] = list(spec.choices)
    if spec.kind == "list":
        result["items"] = {"enum": list(spec.choices)} if spec.choices else {"type": "string"}
    if spec.kind in ("numbers", "integers"):
        result["items"] = {"type": "integer" if spec.kind == "integers" else "number"}
    if spec.kind == "map":
        of = {"type": {"str": "string", "int": "integer", "float": "number"}[spec.values]}
        result["additionalProperties"] = {"enum": list(spec.choices)} if spec.choices else of
    if spec.kind == "tables":
        result["items"] = _tables(spec)
    result |= _limits(spec)
    if spec.or_tables:
        result["anyOf"] = [
            {"type": result.pop("type"), "minLength": 1},
            {"type": "array", "minItems": 1, "items": _tables(spec)},
        ]
    if spec.instead:
        listed = {key: result.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in result}
        result["anyOf"] = [listed, {"type": "string"} if spec.or_pattern else {"const": spec.instead}]
    if spec.default is not None:
        result["default"] = spec.default
    return result


def _tables(spec: FieldSpec) -> dict[str, Any]:
    required = [item.path for item in spec.items if item.required]
    return _object({item.path: _property(item) for item in spec.items}, required)


_JSON_TYPES = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "choice": "string",
    "str": "string",
    "list": "array",
    "numbers": "array",
    "integers": "array",
    "tables": "array",
    "map": "object",
}
_JSON_LIMITS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "pattern": "pattern",
}


def _limits(spec: FieldSpec) -> dict[str, Any]:
    limits = {word: getattr(spec.bounds, name) for name, word in _JSON_LIMITS.items()}
    length = "Items" if spec.kind in ("list", "numbers", "integers", "tables") else "Length"
    limits |= {f"min{length}": spec.bounds.min_length, f"max{length}": spec.bounds.max_length}
    return {word: value for word, value in limits.items() if value is not None}


def _table(specs: Iterable[FieldSpec]) -> str:
    lines = ["| field | value | default | unit | |", "|---|---|---|---|---|"]
    for spec in specs:
        if spec.kind == "tables":
            lines.extend(_row(f"{spec.path}[].{item.path}", item, f"{spec.help} {item.help}") for item in spec.items)
        else:
            lines.append(_row(spec.path, spec, spec.help))
            lines.extend(_row(f"{spec.path}[].{item.path}", item, item.help) for item in spec.items)
    return "\n".join(lines)


def _row(path: str, spec: FieldSpec, help_text: str) -> str:
    default = spec.default_words if spec.required or spec.default is None else f"`{spell(spec.default)}`"
    accepts = f" Accepts: {', '.join(spec.accepts)}." if spec.accepts else ""
    cells = [f"`{path}`", spec.allowed, default, spec.unit or "", help_text + accepts]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _file_types() -> str:
    lines = [
        "| type | bits per weight | `general.file_type` | importance matrix | usual mean KL, nats | arithmetic, nats |"
        " |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_file_type_row(row) for row in FILE_TYPES.values())])


def _file_type_row(row: FileType) -> str:
    usual = "" if row.usual_kl is None else exact(row.usual_kl)
    limit = exact(row.arithmetic_limit)
    note = "only for models trained with ternary weights" if row.ternary else ""
    cells = [f"`{row.name}`", exact(row.bits_per_weight), str(row.id), row.importance, usual, limit, note]
    return "| " + " | ".join(cells) + " |"


def write_reference() -> list[Path]:
    """Rewrite the files; returns their paths."""
    texts = {REFERENCE: reference_text(), JSON_SCHEMA: json_schema_text(), **page_texts()}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return list(texts)


if __name__ == "__main__":
    write_reference()
