"""The fields that say how data is read: in a recipe, by an override, in the form and in the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.forms.values import read_value, show_value
from recipes.fields import fields_of
from recipes.fingerprint import fingerprint
from recipes.load import load_recipe_text
from recipes.problems import RecipeError
from recipes.reference import json_schema
from recipes.resume_changes import change_recipe, refused_at_resume
from recipes.stages.finetune import FinetuneStage

RECIPE = """\
schema = 1
name = "r"

[[stage]]
name = "tuned"
kind = "finetune"
model = "org/name"
data = "org/set"
{}
"""


def loaded(line: str = "", *sets: str) -> FinetuneStage:
    stage = load_recipe_text(RECIPE.format(line), Path("r.toml"), sets).recipe.stage[0]
    assert isinstance(stage, FinetuneStage)
    return stage


def test_columns_are_a_table_of_texts_in_every_spelling() -> None:
    expected = {"user": "task.description", "assistant": "output"}
    assert loaded('columns = { user = "task.description", assistant = "output" }').columns == expected
    assert loaded('columns.user = "task.description"\ncolumns.assistant = "output"').columns == expected
    assert loaded("", 'tuned.columns={ user = "task.description", assistant = "output" }').columns == expected
    assert loaded("", "tuned.columns.user=task.description", "tuned.columns.assistant=output").columns == expected
    assert loaded("", "tuned.columns.text=2024").columns == {"text": "2024"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('columns = { user = "a" }', "user and assistant belong together"),
        ('columns = { user = "a", assistant = "b", text = "c" }', "cannot be combined"),
        ('columns = { assistent = "a" }', "did you mean assistant?"),
        ('columns = { text = "a..b" }', "has an empty part"),
        ("columns = { text = 7 }", "allowed a string"),
        ('columns = "text"', "allowed a table of strings"),
        ('encoding = "utf-9"', "not the name of a text encoding"),
        ('encoding = "base64"', "not the name of a text encoding"),
        ('format = "sharegtp"', "did you mean sharegpt?"),
        ('on_bad_row = "drop"', 'allowed "error", "skip"'),
    ],
)
def test_a_wrong_value_is_located_with_what_is_allowed(line: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(line)
    (problem,) = caught.value.problems
    assert problem.line == 9
    assert says in str(problem)


def test_the_form_and_the_schema_know_the_table() -> None:
    spec = next(spec for spec in fields_of("finetune") if spec.path == "columns")
    assert (spec.kind, spec.allowed) == ("map", "a table of strings")
    schema = json_schema()["definitions"]["finetune"]["properties"]["columns"]
    assert schema["additionalProperties"] == {"type": "string"}
    table = {"user": "task.description", "assistant": "execution.output"}
    assert read_value(show_value(table), "map") == table
    assert read_value("user=task.description, assistant=execution.output", "map") == table


def test_a_stage_of_an_earlier_version_keeps_its_fingerprint_and_a_resume_may_not_read_otherwise() -> None:
    fields = json.loads(json.dumps(loaded().model_dump(mode="json")))
    older = {key: value for key, value in fields.items() if key not in _NEW}
    assert fingerprint(fields, []) == fingerprint(older, [])
    assert fingerprint(loaded('format = "text"').model_dump(mode="json"), []) != fingerprint(older, [])
    resolved = load_recipe_text(RECIPE.format(""), Path("r.toml")).resolved
    changed = change_recipe(resolved, ["tuned.columns.text=body", "tuned.on_bad_row=skip"])
    problems = refused_at_resume(changed.changes, changed.recipe, "last")
    assert [problem.key for problem in problems] == ["tuned.columns", "tuned.on_bad_row"]


_NEW = {"format", "columns", "ignore_keys", "on_bad_row", "encoding", "where"}


def test_a_dataset_of_a_hub_is_an_input_but_not_of_every_field() -> None:
    graph = load_recipe_text(RECIPE.format(""), Path("r.toml")).graph
    assert graph.inputs["tuned"]["data"].origin == "hub"
    with pytest.raises(RecipeError, match="a hub id can only be a model or a dataset"):
        loaded('start_from = "org/adapter"')
