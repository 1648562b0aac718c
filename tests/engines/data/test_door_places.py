"""The data door: folders, splits and the local cache of a hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.data.door import (
    DataSource,
    Located,
    ReadCounts,
    read_rows,
    source_of_stage,
    splits_in,
)
from engines.inputs.data_place import data_files, split_of
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage
from tests.engines.data.door_rows import GOOD, put, rows_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("dev.json", "val"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("my_train_v2.json", "train"),
        ("Valid.jsonl", "val"),
        ("attest.json", ""),
        ("trained.json", ""),
        ("train_test.json", ""),
        ("0001.json", ""),
    ],
)
def test_a_name_says_its_split(name: str, split: str) -> None:
    assert split_of(name) == split


def names(place: Path) -> dict[str, list[str]]:
    return {
        split: [file.relative_to(place).as_posix() for file in files]
        for split, files in splits_in(DataSource(place)).items()
    }


def test_a_folder_of_splits_and_a_folder_of_rows(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "old/train.jsonl", "metadata.json", ".hidden.json"):
        put(tmp_path / "split" / name, GOOD)
    assert names(tmp_path / "split") == {"train": ["train.jsonl"], "val": ["valid.jsonl"]}
    assert [file.name for file in data_files(tmp_path / "split").left_out] == ["train.jsonl"]
    counts = ReadCounts()
    assert len(list(read_rows(DataSource(tmp_path / "split"), "train", counts))) == 1
    assert "old/train.jsonl" in counts.notes()[0]
    for number in range(12):
        put(tmp_path / "rows" / f"{number:04d}.json", GOOD)
    assert names(tmp_path / "rows") == {"": [f"{number:04d}.json" for number in range(12)]}
    counts = ReadCounts()
    assert len(list(read_rows(DataSource(tmp_path / "rows"), "train", counts))) == 12
    assert counts.files == 12
    with pytest.raises(OperatorError, match="has no test split, only data without splits"):
        rows_of(tmp_path / "rows", "test")


def test_what_is_saved_by_datasets_and_what_lies_on_the_hub_has_its_splits(tmp_path: Path) -> None:
    for name in ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow", "dataset_dict.json"):
        put(tmp_path / "saved" / name)
    assert list(names(tmp_path / "saved")) == ["train", "test"]
    for name in ("README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"):
        put(tmp_path / "hub" / name)
    assert [len(files) for files in names(tmp_path / "hub").values()] == [2]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["main/train.json", "socratic/train.json"], "several parts with splits of their own: main, socratic"),
        (["train.json", "train.parquet"], "the train split is there as"),
        (["test.json", "data.json"], "test.json is named for a split, but data.json is not"),
        (["notes.md"], "has no data files"),
    ],
)
def test_a_folder_whose_files_are_not_clear_is_refused(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        put(tmp_path / name, GOOD)
    with pytest.raises(OperatorError) as raised:
        splits_in(DataSource(tmp_path))
    assert says in raised.value.message
    assert raised.value.hint


def test_a_dataset_of_the_hub_is_read_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home, commit = tmp_path / "datasets--org--name", "a" * 40
    blob = put(home / "blobs" / "0001", GOOD)
    folder = home / "snapshots" / commit / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00001.jsonl").symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    stage = FinetuneStage(name="x", model="./m", data="org/name")
    assert len(list(read_rows(source_of_stage(stage, None, "org/name"), "train", ReadCounts()))) == 1
    with pytest.raises(OperatorError, match="no dataset org/other in the local hub cache"):
        source_of_stage(stage, None, "org/other")


def test_reading_is_a_stream(tmp_path: Path) -> None:
    """A bad row far behind is met only when it is reached."""
    file = put(tmp_path / "a.jsonl", *[GOOD] * 5000)
    with file.open("a") as more:
        more.write("{oops\n")
    reading = read_rows(DataSource(file), "", ReadCounts())
    assert isinstance(next(reading), Located)
    with pytest.raises(OperatorError, match=r":5001: not JSON"):
        list(reading)
