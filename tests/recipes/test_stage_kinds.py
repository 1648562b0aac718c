"""The registry of stage kinds agrees with the code: modules, programs, types, documents."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recipes.fields import FieldSpec, fields_of, keys_of
from recipes.reference import REFERENCE
from recipes.schema import Recipe
from recipes.stages import registry
from recipes.stages.fields import StageFields
from recipes.stages.kind import StageKind
from recipes.stages.registry import (
    STAGE_KINDS,
    STAGE_TYPES,
    kind_of,
    modules_of,
    output_of,
    output_word,
    row_of,
    tag_of_stage,
    tag_of_table,
    tags_of,
)

ROOT = Path(__file__).resolve().parents[2]
ROWS = list(STAGE_KINDS.values())
PROGRAMS = ("engines.run", "exporters.run")


def smallest(tag: str) -> dict[str, Any]:
    """A stage's table with only its required fields."""
    given: dict[str, Any] = {"name": "x", "kind": kind_of(tag)}
    if len(tags_of(kind_of(tag))) > 1:
        given["output"] = output_word(tag)
    for spec in fields_of(tag):
        if spec.required and spec.path not in given:
            numbers = {"int": int(spec.bounds.ge or 1), "float": spec.bounds.ge or 1.0}
            given[spec.path] = numbers.get(spec.kind, spec.choices[0] if spec.choices else "./x")
        elif _one_of_two(tag, spec):
            given[spec.path] = "./x"
    return given


def _one_of_two(tag: str, spec: FieldSpec) -> bool:
    """A merge takes one adapter or several; rows come from data or from a command."""
    adapter = spec.accepts == ("adapter",) and spec.kind == "str"
    return adapter or (spec.path == "data" and "command" in keys_of(tag))


def stage_of(tag: str) -> StageFields:
    return Recipe.model_validate({"schema": 1, "name": "r", "stage": [smallest(tag)]}).stage[0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_the_module_of_a_kind_exists_and_has_its_function(row: StageKind[Any]) -> None:
    file = ROOT / (row.module.replace(".", "/") + ".py")
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    run = next((node for node in functions if node.name == "run"), None)
    assert run is not None, f"{row.module} has no run(ctx)"
    assert [argument.arg for argument in run.args.args] == ["ctx"]


def test_only_the_program_of_its_modules_package_runs_a_kind() -> None:
    assert {row.program for row in ROWS} == set(PROGRAMS)
    known = {program: modules_of(program) for program in PROGRAMS}
    assert {kind: module for modules in known.values() for kind, module in modules.items()} == {
        row.kind: row.module for row in ROWS
    }
    assert sum(map(len, known.values())) == len(ROWS)
    for program in PROGRAMS:
        source = (ROOT / (program.replace(".", "/") + ".py")).read_text()
        assert f'modules_of("{program}")' in source, "a program runs only its own kinds"
        assert all(module.split(".")[0] == program.split(".")[0] for module in known[program].values())


def test_every_type_is_in_one_row_under_one_tag() -> None:
    types = Counter(fields for row in ROWS for fields in row.types.values())
    assert set(types.values()) == {1}
    assert set(types) == set(STAGE_TYPES.values())
    assert len(STAGE_TYPES) == len(types), "no two types have one tag"
    assert all(issubclass(fields, StageFields) for fields in types)


def rows_in(module: ModuleType) -> list[StageKind[Any]]:
    return [value for value in vars(module).values() if isinstance(value, StageKind)]


def test_every_row_of_the_package_is_in_the_registry() -> None:
    """A row that the registry does not list could not be a stage."""
    files = [path.stem for path in sorted((ROOT / "recipes" / "stages").glob("*.py")) if path.stem != "registry"]
    rows = {file: rows_in(importlib.import_module(f"recipes.stages.{file}")) for file in files}
    assert {row.kind: row for found in rows.values() for row in found} == STAGE_KINDS
    assert {row.kind: file for file, found in rows.items() for row in found} == {kind: kind for kind in STAGE_KINDS}


def test_every_type_that_states_a_kind_is_in_a_row() -> None:
    defined = set()
    waiting: list[type[StageFields]] = [StageFields]
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        defined |= {fields for fields in found if isinstance(fields.model_fields["kind"].default, str)}
    assert {fields for fields in defined if fields.__module__.startswith("recipes.")} == set(STAGE_TYPES.values())


@pytest.mark.parametrize("tag", STAGE_TYPES)
def test_the_smallest_stage_of_a_type_is_found_in_its_row_again(tag: str) -> None:
    stage = stage_of(tag)
    assert type(stage) is STAGE_TYPES[tag]
    assert tag_of_stage(stage) == tag_of_table(smallest(tag)) == tag
    assert row_of(stage).kind == stage.kind == kind_of(tag)
    assert row_of(stage).types[output_of(stage)] is type(stage)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"kind": "distill"},
        {"kind": ["fake"]},
        {"kind": "prepare"},
        {"kind": "prepare", "output": "x"},
        None,
        "fake",
    ],
)
def test_a_table_of_an_unknown_type_has_no_tag(table: object) -> None:
    assert tag_of_table(table) is None


@pytest.mark.parametrize("tag", STAGE_TYPES)
def test_what_a_stage_needs_installed_is_known_before_it_runs(tag: str) -> None:
    stage = stage_of(tag)
    needs = row_of(stage).needs(stage)
    assert {"msgspec", "pydantic"} <= set(needs), "every engine reads its stage and writes events"
    assert len(needs) == len(set(needs))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.kind)
def test_a_row_names_fields_that_its_types_have(row: StageKind[Any]) -> None:
    for tag in row.tags:
        paths = {spec.path for spec in fields_of(tag)}
        if row.trains:
            assert {"save_steps", "save_total_limit", "learning_rate"} <= paths
        if row.same_shape_as is not None:
            assert row.same_shape_as in paths
        if row.reads_model_config:
            assert "model" in paths


def test_every_kind_and_its_output_are_in_the_reference() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for tag in STAGE_TYPES:
        section = text.partition(f'## `kind = "{kind_of(tag)}"')[2]
        assert section, f"run: python -m recipes.reference ({tag})"
        assert f"Output: {output_word(tag)}." in text


def test_a_kind_of_a_newer_version_has_no_known_properties() -> None:
    assert not registry.trains("distill")
    assert not registry.scores("distill")
    assert not registry.makes("distill", "model")
    assert registry.weights("distill") == ()
