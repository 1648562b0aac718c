from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.inputs.files_read import files_read, sources_of
from engines.inputs.record import identify_inputs
from engines.stage_file import StageInput
from recipes.stages.registry import STAGE_TYPES


def a_stage(tag: str, **fields: Any) -> Any:
    return STAGE_TYPES[tag].model_validate({"name": "s", **fields})


FINETUNE = a_stage("finetune", kind="finetune", model="./m", data="./d")
EVALUATE = a_stage("evaluate", kind="evaluate", model="./m", data="./d", split="val")
EXPORT = a_stage("export", kind="export", model="./m", data="./d")
FAKE = a_stage("fake", kind="fake", data="./d")


def names(stage: Any, field: str, folder: Path) -> list[str]:
    return [name for name, _ in files_read(stage, field, folder)]


def fill(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_of_a_folder_of_splits_only_the_splits_that_the_stage_reads_count(tmp_path: Path) -> None:
    folder = fill(tmp_path, "train.jsonl", "val.jsonl", "test.jsonl", "notes.txt", "old/train.jsonl", "metadata.json")
    assert names(FINETUNE, "data", folder) == ["metadata.json", "train.jsonl", "val.jsonl"]
    assert names(EVALUATE, "data", folder) == ["metadata.json", "val.jsonl"]
    assert "notes.txt" not in names(EXPORT, "data", folder)


def test_of_data_in_any_form_the_files_of_the_door_count(tmp_path: Path) -> None:
    rows = fill(tmp_path / "rows", "0001.json", "0002.json", "notes.txt", "deep/0003.json")
    assert names(FINETUNE, "data", rows) == ["0001.json", "0002.json"]
    splits = fill(tmp_path / "splits", "data/train-00000-of-00001.parquet", "data/test-0.parquet", "README.md")
    assert names(FINETUNE, "data", splits) == ["data/train-00000-of-00001.parquet"]
    unclear = fill(tmp_path / "unclear", "train.json", "train.parquet")
    assert names(FINETUNE, "data", unclear) == []


def test_a_cached_dataset_is_identified_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "datasets--org--set"
    snapshot = fill(home / "snapshots" / ("a" * 40), "train.jsonl")
    fill(home / "refs", "main")
    (home / "refs" / "main").write_text("a" * 40)
    given = {"data": StageInput(origin="hub", name="org/set"), "model": StageInput(origin="hub", name="org/set")}
    by_field = {record.field: record for record in identify_inputs(FINETUNE, given)}
    assert by_field["model"].method == "name"
    before = by_field["data"]
    assert (before.method, before.name, [file.path for file in before.files]) == ("content", "org/set", ["train.jsonl"])
    (snapshot / "train.jsonl").write_text("other")
    after = {record.field: record for record in identify_inputs(FINETUNE, given)}["data"]
    assert after.sha256 != before.sha256


def test_a_named_file_is_its_own_only_content(tmp_path: Path) -> None:
    fill(tmp_path, "held-out.txt", "beside.txt")
    assert names(EXPORT, "data", tmp_path / "held-out.txt") == ["held-out.txt"]


def test_a_folder_of_texts_is_read_whole_without_hidden_files(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a.txt", "deep/b.txt", ".git/config", ".hidden")
    assert names(EXPORT, "data", folder) == ["a.txt", "deep/b.txt"]


def test_of_a_model_folder_only_what_loaders_open_counts(tmp_path: Path) -> None:
    folder = fill(
        tmp_path, "config.json", "model.safetensors", "tokenizer.json", "README.md", "training_args.bin",
        "consolidated.safetensors", "pytorch_model.bin", "trainer_state.json", "checkpoint-10/model.safetensors",
        "additional_chat_templates/tool.jinja", "manifest.json",
    )  # fmt: skip
    assert names(FINETUNE, "model", folder) == [
        "additional_chat_templates/tool.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_shards_are_those_of_the_index_and_pickles_count_only_without_safetensors(tmp_path: Path) -> None:
    sharded = fill(tmp_path / "a", "config.json", "model-1.safetensors", "model-2.safetensors", "extra.safetensors")
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "extra.safetensors" not in names(FINETUNE, "model", sharded)
    assert {"model-1.safetensors", "model-2.safetensors"} < set(names(FINETUNE, "model", sharded))
    pickled = fill(tmp_path / "b", "config.json", "pytorch_model.bin", "optimizer.pt")
    assert names(FINETUNE, "model", pickled) == ["config.json", "pytorch_model.bin"]


def test_the_source_of_a_text_stage_is_an_input_with_the_files_that_it_includes(tmp_path: Path) -> None:
    fill(tmp_path, "a.py", "b.txt", "b.png", "skip/c.py", "__pycache__/d.py")
    stage = a_stage("prepare-text", kind="prepare", output="text", source=str(tmp_path), exclude=["skip/*"])
    assert sources_of(stage) == {"source": tmp_path}
    assert names(stage, "source", tmp_path) == ["a.py", "b.txt"]
    only = a_stage("prepare-text", kind="prepare", output="text", source=str(tmp_path), include=["*.py"])
    assert names(only, "source", tmp_path) == ["a.py", "skip/c.py"]
    file = a_stage("prepare-text", kind="prepare", output="text", source=str(tmp_path / "b.txt"))
    assert names(file, "source", tmp_path / "b.txt") == ["b.txt"]
    assert sources_of(a_stage("prepare-text", kind="prepare", output="text", source="python-stdlib")) == {}


def test_of_a_model_whose_tokenizer_encodes_a_text_only_the_tokenizer_is_an_input(tmp_path: Path) -> None:
    fill(tmp_path, "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md")
    stage = a_stage("prepare-tokens", kind="prepare", output="tokens", data="text", tokenizer=str(tmp_path))
    assert names(stage, "tokenizer", tmp_path) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("stage", [FINETUNE, EVALUATE, EXPORT, FAKE])
def test_a_folder_that_does_not_exist_has_no_files(stage: Any, tmp_path: Path) -> None:
    assert names(stage, "data", tmp_path / "gone") == []
