"""Recipes of one stage: the text contains the chosen inputs and reads back as chosen."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.one_stage.recipe import Export, Input, Merge, Origin, one_stage_recipe, short_name

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_a_merge_of_a_run_says_where_it_is_from_and_what_its_inputs_were() -> None:
    merge = Merge(Input.at(Path("/m/base"), "b" * 64), (Input.at(Path("/m/tuned"), "a" * 64),), "bfloat16")
    made = one_stage_recipe(merge, "atlas", Origin("20261120-2130-atlas", "tuned, step 400"))
    assert (made.name, made.parent) == ("atlas-merged", "20261120-2130-atlas")
    assert made.text.splitlines() == [
        "schema = 1",
        'name = "atlas-merged"',
        'description = "Merge of tuned, step 400, from run 20261120-2130-atlas."',
        "",
        "[[stage]]",
        'name = "merged"',
        'kind = "merge"',
        f'model = "/m/base"  # manifest sha256 {"b" * 64}',
        f'adapter = "/m/tuned"  # manifest sha256 {"a" * 64}',
        'dtype = "bfloat16"',
    ]


def test_an_export_of_a_folder_has_no_parent_and_names_only_what_was_chosen() -> None:
    made = one_stage_recipe(Export(Input("org/model"), ("F16", "Q8_0")), "model-merged")
    assert made.parent == ""
    assert made.text.splitlines() == [
        "schema = 1",
        'name = "model-gguf"',
        "",
        "[[stage]]",
        'name = "gguf"',
        'kind = "export"',
        'model = "org/model"',
        'file_types = ["F16", "Q8_0"]',
    ]


@settings(max_examples=200)
@given(WORDS, WORDS, WORDS, WORDS)
def test_any_names_of_folders_runs_and_records_read_back(model: str, adapter: str, run: str, recorded: str) -> None:
    merge = Merge(Input(model, None, recorded), (Input(adapter, None, recorded),), "base")
    made = one_stage_recipe(merge, run, Origin(run, recorded))
    data = tomllib.loads(made.text)
    assert data["stage"] == [{"name": "merged", "kind": "merge", "model": model, "adapter": adapter, "dtype": "base"}]
    assert data["description"] == f"Merge of {recorded}, from run {run}."
    assert data["name"] == made.name


@settings(max_examples=100)
@given(WORDS)
def test_an_export_reads_back_with_every_input(name: str) -> None:
    export = Export(Input("m"), ("F16",), Input(name), (Input(name), Input("b")), Input(name), "always")
    (stage,) = tomllib.loads(one_stage_recipe(export, name).text)["stage"]
    assert (stage["adapter"], stage["adapters"], stage["data"]) == (name, [name, "b"], name)
    assert (stage["file_types"], stage["imatrix"]) == (["F16"], "always")


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_a_name_is_a_recipes_name_whatever_it_is_made_from(of: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,40}", short_name(of, "gguf"))


def test_names_do_not_grow_with_every_step() -> None:
    assert short_name("atlas-merged", "gguf") == short_name("atlas-gguf", "gguf") == "atlas-gguf"


def test_one_adapter_has_its_hash_and_several_are_a_list() -> None:
    two = Merge(Input("m"), (Input("a", None, "a" * 64), Input("b")))
    assert 'adapters = ["a", "b"]\n' in one_stage_recipe(two, "x").text
