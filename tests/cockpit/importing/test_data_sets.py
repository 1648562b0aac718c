"""Descriptions of data sets become the fields that read them, or say why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.importing.programs import Imported
from cockpit.importing.recipe_text import recipe_text
from recipes.load import load_recipe_text
from tests.cockpit.importing.configurations import AXOLOTL, LLAMA_FACTORY, imported, outcome, registry

RANKED = {"ranking": True, "columns": {"prompt": "q", "query": "more", "chosen": "yes", "rejected": "no"}}
OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
AXOLOTL_DATA = AXOLOTL[AXOLOTL.index("datasets:") : AXOLOTL.index("dataset_prepared_path")]


def with_data(folder: Path, entry: dict[str, Any]) -> Imported:
    registry(folder, pets={"file_name": "pets.json", **entry})
    return imported(folder, LLAMA_FACTORY.replace("val_size: 0.1\n", ""))


@pytest.mark.parametrize(
    ("entry", "fields"),
    [
        ({}, {"format": "alpaca"}),
        ({"columns": {"prompt": "instruction", "query": "input", "response": "output"}}, {"format": "alpaca"}),
        (
            {"columns": {"prompt": "ask", "query": "more", "response": "output", "history": "before"}},
            {"format": "alpaca", "columns": {"instruction": "ask", "input": "more", "history": "before"}},
        ),
        ({"columns": {"prompt": "text"}}, {"format": "text"}),
        ({"columns": {"prompt": "content"}}, {"format": "text", "columns": {"text": "content"}}),
        (
            {"columns": {"prompt": "question", "response": "answer", "system": "rules"}},
            {"columns": {"user": "question", "assistant": "answer", "system": "rules"}},
        ),
        (
            {"columns": {"prompt": "instruction", "response": "output"}},
            {"columns": {"user": "instruction", "assistant": "output"}, "ignore_keys": ["input"]},
        ),
        ({"formatting": "sharegpt"}, {"format": "sharegpt"}),
        (
            {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
            {"format": "sharegpt"},
        ),
        (
            {"formatting": "sharegpt", "columns": {"system": "rules"}},
            {"format": "sharegpt", "columns": {"system": "rules"}},
        ),
        ({"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": OPENAI}, {"format": "messages"}),
        (
            {"formatting": "sharegpt", "columns": {"messages": "conversation"}, "tags": OPENAI},
            {"format": "messages", "columns": {"messages": "conversation"}},
        ),
    ],
)
def test_an_entry_of_dataset_info_becomes_format_and_columns(
    entry: dict[str, Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    found = with_data(tmp_path, entry)
    tuned = found.stages["tuned"]
    assert {name: tuned[name] for name in ("format", "columns", "ignore_keys") if name in tuned} == fields
    assert tuned["data"] == str(tmp_path / "data" / "pets.json")
    assert outcome(found, "dataset").status == "imported"
    load_recipe_text(recipe_text(found), tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"ranking": True}, "stage: dpo"),
        ({"columns": {"kto_tag": "label"}}, "KTO"),
        ({"columns": {"messages": "messages", "images": "images"}, "formatting": "sharegpt"}, "pictures"),
        ({"script_url": "mine", "file_name": None}, "never executed"),
        ({"ms_hub_url": "a/b", "file_name": None}, "Hugging Face"),
        ({"formatting": "tables"}, "allowed: alpaca, sharegpt"),
    ],
)
def test_data_that_no_stage_reads_makes_no_recipe_and_says_why(
    entry: dict[str, Any], says: str, tmp_path: Path
) -> None:
    entry = {"file_name": "pets.json", **entry}
    registry(tmp_path, pets={key: value for key, value in entry.items() if value is not None})
    one = outcome(imported(tmp_path, LLAMA_FACTORY), "dataset")
    assert one.status == "missing"
    assert says in one.says


def test_keys_inside_an_entry_are_named_by_their_path(tmp_path: Path) -> None:
    entry = {"hf_hub_url": "a/b", "subset": "en", "split": "full", "mine": 1, "tags": {"user_tag": "asker"}}
    found = with_data(tmp_path, {**entry, "formatting": "sharegpt"})
    assert {one.key: one.status for one in found.outcomes if one.key.startswith("dataset.")} == {
        "dataset.pets.file_name": "unneeded",
        "dataset.pets.subset": "different",
        "dataset.pets.split": "different",
        "dataset.pets.mine": "unknown",
        "dataset.pets.tags.user_tag": "different",
    }
    assert found.stages["tuned"]["data"] == "a/b"


def test_several_data_sets_name_those_that_are_left_out(tmp_path: Path) -> None:
    registry(tmp_path, pets={"file_name": "pets.json"}, cars={"file_name": "cars.json"})
    text = LLAMA_FACTORY.replace("dataset: pets", "dataset: pets, cars").replace("val_size: 0.1\n", "")
    one = outcome(imported(tmp_path, text), "dataset")
    assert one.status == "different"
    assert "cars" in one.says


def test_a_registry_that_is_not_found_is_said_and_the_recipe_asks_for_the_data(tmp_path: Path) -> None:
    found = imported(tmp_path, LLAMA_FACTORY)
    assert "data/dataset_info.json" in outcome(found, "dataset").says
    assert "# data =" in recipe_text(found)


@pytest.mark.parametrize(
    ("entry", "fields"),
    [
        ("- path: a/b\n    type: chat_template", {"format": "messages"}),
        (
            "- path: a/b\n    type: chat_template\n    field_messages: talk",
            {"format": "messages", "columns": {"messages": "talk"}},
        ),
        ("- path: a/b\n    type: sharegpt", {"format": "sharegpt"}),
        ("- path: a/b\n    type: alpaca", {"format": "alpaca"}),
        ("- path: a/b\n    type: completion\n    field: body", {"format": "text", "columns": {"text": "body"}}),
        (
            "- path: a/b\n    type:\n      field_instruction: q\n      field_output: a\n      format: '{input}'",
            {"columns": {"user": "q", "assistant": "a"}},
        ),
    ],
)  # fmt: skip
def test_an_entry_of_axolotls_datasets_becomes_format_and_columns(
    entry: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    text = AXOLOTL.replace(AXOLOTL_DATA, f"datasets:\n  {entry}\n").replace("val_set_size: 0.05\n", "")
    data = imported(tmp_path, text).stages["tuned"]
    assert {name: data[name] for name in ("format", "columns", "ignore_keys") if name in data} == fields
    assert data["data"] == "a/b"


def test_axolotls_datasets_alone_are_imported_as_data(tmp_path: Path) -> None:
    found = imported(tmp_path, "datasets:\n  - path: a/b\n    type: alpaca\n    field_human: x\n    odd: 1\n")
    assert found.stages["tuned"] == {"data": "a/b", "format": "alpaca"}
    assert outcome(found, "datasets[0].odd").line == 5


def test_a_registry_becomes_one_prepare_stage_for_each_data_set(tmp_path: Path) -> None:
    registry(
        tmp_path, Pets_EN={"file_name": "pets.json"}, pets_en={"hf_hub_url": "a/b", "formatting": "sharegpt"},
        odd={"file_name": "r.json", "ranking": True}, ranked={"file_name": "r.json", **RANKED},
    )  # fmt: skip
    text = (tmp_path / "data" / "dataset_info.json").read_text()
    found = imported(tmp_path / "data", text, "dataset_info.json")
    assert list(found.stages) == ["pets-en", "pets-en-2", "ranked"]
    assert found.stages["ranked"]["format"] == "preference"
    assert outcome(found, "odd").status == "different"
    assert outcome(found, "pets_en").line > 1, "tabs in JSON hide no line"
    recipe = load_recipe_text(recipe_text(found), tmp_path / "recipe.toml").recipe
    assert [stage.kind for stage in recipe.stage] == ["prepare", "prepare", "prepare"]


def test_data_that_is_not_found_is_held_out_as_the_configuration_says(tmp_path: Path) -> None:
    found = imported(tmp_path, LLAMA_FACTORY)
    assert found.stages["data"] == {"val_fraction": 0.1, "test_fraction": 0.0}
    assert found.stages["tuned"]["data"] == "data"
