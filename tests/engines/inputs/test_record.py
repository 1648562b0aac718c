from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engines.artifacts.manifest import manifest_sha256, write_manifest
from engines.inputs.compare import changes_of
from engines.inputs.record import InputRecord, identify_inputs, read_record, stage_fingerprint, write_record
from engines.stage_file import StageInput
from recipes.stages.finetune import FinetuneStage

STAGE = FinetuneStage.model_validate({"name": "tuned", "kind": "finetune", "model": "./m", "data": "./d"})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("one\ntwo\n")
    (folder / "val.jsonl").write_text("three\n")
    return folder


def identified(data: Path) -> list[InputRecord]:
    return identify_inputs(STAGE, {"data": StageInput(origin="path", name="./data", path=str(data))})


def lines(before: list[InputRecord], after: list[InputRecord]) -> list[str]:
    return [line for change in changes_of("tuned", before, after, {}) for line in change.lines()]


def test_touching_copying_and_adding_beside_change_nothing(data: Path) -> None:
    before = identified(data)
    os.utime(data / "train.jsonl", ns=(1, 1))
    (data / "notes.txt").write_text("beside")
    assert identified(data) == before
    shutil.copytree(data, data.with_name("copy"))
    data.rename(data.with_name("old"))
    data.with_name("copy").rename(data)
    assert identified(data) == before
    assert lines(before, identified(data)) == []


def test_one_changed_byte_a_missing_and_an_added_file_are_named(data: Path) -> None:
    before = identified(data)
    (data / "train.jsonl").write_text("one\ntwO\n")
    assert lines(before, identified(data)) == ["tuned.data ./data: changed train.jsonl (8 bytes, other content)"]
    (data / "val.jsonl").unlink()
    (data / "metadata.json").write_text("{}")
    (data / "train.jsonl").write_text("one\n")
    assert lines(before, identified(data)) == [
        "tuned.data ./data: changed train.jsonl (8 → 4 bytes)",
        "tuned.data ./data: missing val.jsonl",
        "tuned.data ./data: added metadata.json (2 B)",
    ]


def test_the_text_of_a_chat_template_in_a_file_is_an_input_and_a_named_one_is_not(data: Path) -> None:
    file = data.with_name("mine.jinja")
    file.write_text("one")
    given = {"data": StageInput(origin="path", name="./data", path=str(data))}
    stage = STAGE.model_copy(update={"chat_template": str(file)})
    before = identify_inputs(stage, given)
    file.write_text("two")
    after = identify_inputs(stage, given)
    assert [record.field for record in before] == ["chat_template", "data"]
    assert lines(before, after) == [f"tuned.chat_template {file}: changed mine.jinja (3 bytes, other content)"]
    assert stage_fingerprint(stage, {one.field: one.identity for one in before}) != stage_fingerprint(
        stage, {one.field: one.identity for one in after}
    )
    named = STAGE.model_copy(update={"chat_template": "chatml"})
    assert [record.field for record in identify_inputs(named, given)] == ["data"]


def test_the_cause_is_named_even_if_the_list_of_files_was_lost(data: Path) -> None:
    before = identified(data)
    (data / "train.jsonl").write_text("other")
    (change,) = changes_of("tuned", [], identified(data), {"data": before[0].sha256})
    assert "the recorded list of files cannot be read" in change.lines()[0]


def test_a_folder_of_cockpit_keeps_the_identity_of_its_manifest_while_its_files_are_the_listed_ones(data: Path) -> None:
    write_manifest(data)
    (before,) = identified(data)
    assert (before.method, before.sha256) == ("manifest", manifest_sha256(data))
    (data / "train.jsonl").write_text("one\ntwO\n")
    (after,) = identified(data)
    assert after.method == "content", "a manifest proves nothing about files that were changed after it"
    assert lines([before], [after]) == ["tuned.data ./data: changed train.jsonl (8 bytes, other content)"]


def test_a_manifest_added_to_the_same_files_is_no_change(data: Path) -> None:
    before = identified(data)
    write_manifest(data)
    assert lines(before, identified(data)) == []


def test_outputs_of_stages_are_identified_by_their_manifest_and_hub_models_by_name() -> None:
    given = {
        "data": StageInput(origin="stage", name="questions", path="/gone", manifest_sha256="a" * 64),
        "model": StageInput(origin="hub", name="org/base"),
    }
    found = {record.field: record for record in identify_inputs(STAGE, given)}
    assert (found["data"].method, found["data"].identity) == ("manifest", "a" * 64)
    assert (found["model"].method, found["model"].identity) == ("name", "org/base")


def test_the_commit_of_a_hubs_model_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--org--base"
    (home / "snapshots" / ("b" * 40)).mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("b" * 40)
    for name, commit in (("org/base", "b" * 40), (f"org/base@{'b' * 40}", "b" * 40), (f"org/base@{'c' * 40}", "")):
        given = {"model": StageInput(origin="hub", name=name)}
        [found] = [record for record in identify_inputs(STAGE, given) if record.field == "model"]
        assert (found.summary().revision, found.summary().name) == (commit, name)


def test_a_record_is_read_back_and_a_damaged_one_is_empty(data: Path, tmp_path: Path) -> None:
    found = identified(data)
    path = tmp_path / "record"
    write_record(path, found)
    assert read_record(path) == found
    path.write_text("{")
    assert read_record(path) == read_record(tmp_path / "gone") == []
