"""Tables of words by any name: tensor_types in a recipe, on a command line and in the form."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.command_line.tensor_types import read_tensor_types
from cockpit.forms.values import read_value, show_value
from recipes.fields import fields_of
from recipes.load import load_recipe_text
from recipes.problems import OperatorError, RecipeError
from recipes.reference import json_schema

RECIPE = """\
schema = 1
name = "r"

[[stage]]
name = "gguf"
kind = "export"
model = "org/name"
file_types = ["q4_k_m"]
tensor_types = {}
"""


def loaded(table: str, *sets: str) -> dict[str, str]:
    recipe = load_recipe_text(RECIPE.format(table), Path("r.toml"), sets).recipe
    types: dict[str, str] = recipe.stage[0].tensor_types  # type: ignore[attr-defined]
    return types


def test_a_recipe_names_types_in_any_case_and_by_any_name() -> None:
    assert loaded('{ "ffn_down" = "q6_k", "blk.0.attn_v" = "Q8_0" }') == {"ffn_down": "Q6_K", "blk.0.attn_v": "Q8_0"}


def test_an_override_sets_the_table_or_one_of_its_names() -> None:
    assert loaded("{}", 'gguf.tensor_types={ ffn_up = "Q5_K" }') == {"ffn_up": "Q5_K"}
    assert loaded('{ ffn_up = "Q5_K" }', "gguf.tensor_types.ffn_down=Q6_K") == {"ffn_up": "Q5_K", "ffn_down": "Q6_K"}


def test_a_wrong_type_is_reported_at_its_name_with_the_choices() -> None:
    with pytest.raises(RecipeError) as caught:
        loaded('{ "ffn_down" = "Q6K" }')
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (9, "gguf.tensor_types.ffn_down")
    assert problem.got == '"Q6K"'
    assert "Q6_K" in problem.allowed
    assert "did you mean Q6_K?" in problem.hint


def test_types_without_a_quantized_file_type_are_refused() -> None:
    text = RECIPE.format('{ ffn_up = "Q5_K" }').replace("q4_k_m", "F16")
    with pytest.raises(RecipeError, match="applies to quantized file types only"):
        load_recipe_text(text, Path("r.toml"))


def test_the_schema_and_the_form_know_the_table() -> None:
    (spec,) = (spec for spec in fields_of("export") if spec.path == "tensor_types")
    assert spec.kind == "map"
    schema = json_schema()["definitions"]["export"]["properties"]["tensor_types"]
    assert schema["type"] == "object"
    assert "Q6_K" in schema["additionalProperties"]["enum"]
    table = {"ffn_down": "Q6_K", "blk.0.attn_v": "Q8_0"}
    assert read_value(show_value(table), "map") == table
    assert read_value("ffn_down=Q6_K, token_embd = Q8_0", "map") == {"ffn_down": "Q6_K", "token_embd": "Q8_0"}
    assert read_value("ffn_down", "map") == "ffn_down"


def test_a_command_line_takes_pairs_or_the_recipe_of_an_export(tmp_path: Path) -> None:
    assert read_tensor_types("ffn_down=q6_k,blk.*.attn_v=Q8_0") == {"ffn_down": "Q6_K", "blk.*.attn_v": "Q8_0"}
    path = tmp_path / "r.toml"
    path.write_text(RECIPE.format('{ "ffn_down" = "q6_k" }'))
    assert read_tensor_types(str(path)) == {"ffn_down": "Q6_K"}
    path.write_text("schema = 1\n")
    for wrong, words in ((str(path), "has 0 tables"), ("ffn_down", "NAME=TYPE"), ("x=Q7_K,y=Q9", "y: got Q9")):
        with pytest.raises(OperatorError, match=words):
            read_tensor_types(wrong)
