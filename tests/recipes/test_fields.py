"""Fields as data, and the files that are generated from them."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from pydantic import BaseModel

from recipes.fields import FieldSpec, fields_of, inputs_of, recipe_fields, sections_of
from recipes.fingerprint import LEFT_OUT, fingerprint
from recipes.load import load_recipe
from recipes.reference import JSON_SCHEMA, REFERENCE, json_schema, json_schema_text, page_texts, reference_text
from recipes.schema import Recipe
from recipes.shipped import shipped_recipes
from recipes.stages.data_fields import DATASET
from recipes.stages.fake import FakeStage
from recipes.stages.fields import DeviceFields, FilesFields
from recipes.stages.pretrain import PretrainStage
from recipes.stages.registry import STAGE_KINDS, STAGE_TYPES, kind_of, tags_of

ALL = [(tag, spec) for tag in STAGE_TYPES for spec in fields_of(tag)]
OUTPUTS = {output for row in STAGE_KINDS.values() for output in row.types}


@pytest.mark.parametrize(("tag", "spec"), ALL, ids=[f"{tag}.{spec.path}" for tag, spec in ALL])
def test_every_field_has_a_help_text_a_section_and_limits_as_text(tag: str, spec: FieldSpec) -> None:
    assert spec.section
    assert spec.help[0].isupper()
    assert spec.help.endswith(".")
    assert spec.allowed
    assert spec.default_words
    assert set(spec.accepts) <= OUTPUTS | {DATASET}
    assert spec.required == (spec.default is None and not spec.nullable)
    for name, unit in (("_s", "seconds"), ("_bytes", "bytes")):
        if spec.path.endswith(name):
            assert spec.unit == unit


def test_fields_are_those_of_the_models_with_nested_tables_flattened() -> None:
    for tag, model in STAGE_TYPES.items():
        flat = [spec.path for spec in fields_of(tag)]
        assert len(flat) == len(set(flat))
        assert {path.split(".")[0] for path in flat} == set(model.model_fields) - {"kind", "output"}
    assert {"retry.max_attempts", "guards.grad_norm"} <= {spec.path for spec in fields_of("fake")}


def test_kinds_and_tags_agree() -> None:
    assert tags_of("prepare") == ["prepare-text", "prepare-tokens", "prepare-messages"]
    assert [tag for kind in STAGE_KINDS for tag in tags_of(kind)] == list(STAGE_TYPES)
    assert {kind_of(tag) for tag in STAGE_TYPES} == set(STAGE_KINDS)
    assert [spec.path for spec in inputs_of("merge")] == ["model", "adapter", "adapters"]


def test_sections_begin_with_the_stage_and_end_with_its_launch() -> None:
    for tag in STAGE_TYPES:
        sections = list(sections_of(tag))
        assert sections[0] == "Stage"
        assert sections[-1] == "Launch"
        assert sorted(spec.path for specs in sections_of(tag).values() for spec in specs) == sorted(
            spec.path for spec in fields_of(tag)
        )


def test_the_reference_and_the_json_schema_are_fresh() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference_text(), "run: python -m recipes.reference"
    assert JSON_SCHEMA.read_text(encoding="utf-8") == json_schema_text(), "run: python -m recipes.reference"
    assert len(page_texts()) == 2
    for page, text in page_texts().items():
        assert page.read_text(encoding="utf-8") == text, "run: python -m recipes.reference"


def test_the_reference_has_the_help_text_of_every_field() -> None:
    text = reference_text()
    for spec in [spec for _, spec in ALL] + recipe_fields():
        assert spec.help.replace("|", "\\|") in text


def test_the_json_schema_has_every_field_of_every_stage_and_default() -> None:
    schema = json_schema()
    for tag in STAGE_TYPES:
        stage = schema["definitions"][tag]
        assert set(stage["properties"]) == set(STAGE_TYPES[tag].model_fields)
        defaults = schema["properties"]["defaults"]["properties"][kind_of(tag)]["properties"]
        assert set(stage["properties"]) - {"name", "kind", "output"} <= set(defaults)
    assert json.loads(json_schema_text()) == schema


def allows(schema: dict[str, Any], value: Any, definitions: dict[str, Any]) -> bool:
    """A validator of exactly the keywords that Cockpit's JSON Schema uses; another keyword is an error."""
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    checks = {
        "type": lambda word: isinstance(value, types[word]) and not (isinstance(value, bool) and word != "boolean"),
        "const": lambda word: value == word,
        "enum": lambda word: value in word,
        "minimum": lambda word: value >= word,
        "maximum": lambda word: value <= word,
        "exclusiveMinimum": lambda word: value > word,
        "exclusiveMaximum": lambda word: value < word,
        "minLength": lambda word: len(value) >= word,
        "maxLength": lambda word: len(value) <= word,
        "minItems": lambda word: len(value) >= word,
        "maxItems": lambda word: len(value) <= word,
        "required": lambda word: set(word) <= set(value),
        "items": lambda word: all(allows(word, item, definitions) for item in value),
        "oneOf": lambda word: sum(allows(one, value, definitions) for one in word) == 1,
        "anyOf": lambda word: any(allows(one, value, definitions) for one in word),
        "$ref": lambda word: allows(definitions[word.rpartition("/")[2]], value, definitions),
        "properties": lambda word: all(allows(word[key], value[key], definitions) for key in value if key in word),
        "additionalProperties": lambda word: (
            set(value) <= set(schema["properties"])
            if word is False
            else all(allows(word, item, definitions) for item in value.values())
        ),
    }
    ignored = {"description", "default", "title", "$schema", "definitions", "pattern"}
    return all(checks[word](argument) for word, argument in schema.items() if word not in ignored)


def test_the_json_schema_allows_the_shipped_recipes_as_they_are_written() -> None:
    schema = json_schema()
    for path in shipped_recipes():
        data = tomllib.loads(path.read_text())
        assert allows(schema, data, schema["definitions"])
        data["stage"][0]["nonsense"] = 1
        assert not allows(schema, data, schema["definitions"])


def test_every_model_of_a_recipe_rejects_unknown_keys_and_other_types() -> None:
    models: set[type[BaseModel]] = {Recipe, *STAGE_TYPES.values()}
    for model in models:
        assert model.model_config.get("extra") == "forbid"
        assert model.model_config.get("strict") is True


def stage_dict(**changes: Any) -> dict[str, Any]:
    stage = FakeStage.model_validate({"name": "a", **changes})
    return stage.model_dump(mode="json")


def test_a_fingerprint_changes_with_every_field_that_decides_the_result_and_no_other() -> None:
    first = fingerprint(stage_dict(), [])
    assert len(first) == 64
    assert fingerprint(dict(reversed(stage_dict().items())), []) == first
    decisive: list[dict[str, Any]] = [
        {"seed": 1},
        {"max_steps": 5},
        {"learning_rate": 1e-3},
        {"guards": {"grad_norm": 2.0}},
    ]
    for change in decisive:
        assert fingerprint(stage_dict(**change), []) != first
    gate = {"metric": "loss", "op": "<", "value": 1.0}
    indifferent: list[dict[str, Any]] = [
        {"threads": 2},
        {"python": "/x"},
        {"retry": {"max_attempts": 2}},
        {"gate": [gate]},
    ]
    for change in indifferent:
        assert fingerprint(stage_dict(**change), []) == first
    assert fingerprint({**stage_dict(), "devices": ["3"]}, []) == first
    assert fingerprint(stage_dict(), ["aa"]) != first
    assert fingerprint(stage_dict(), ["aa", "bb"]) != fingerprint(stage_dict(), ["bb", "aa"])
    assert set(DeviceFields.model_fields) | set(FilesFields.model_fields) >= LEFT_OUT


def test_a_resolved_stage_is_complete_and_can_be_json() -> None:
    recipe = load_recipe(shipped_recipes()[0]).recipe
    base = next(stage for stage in recipe.stage if stage.name == "base").model_dump(mode="json")
    assert set(base) == set(PretrainStage.model_fields)
    assert json.loads(json.dumps(base)) == base


def test_recipes_load_without_engines_or_terminal_libraries() -> None:
    code = (
        "import sys, recipes.load, recipes.edit, recipes.reference; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch','numpy','textual','rich','msgspec','psutil','engines','cockpit')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
