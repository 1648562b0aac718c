"""Chain of custody by SHA-256: the sources of a folder in its manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.custody import MAX_LINKS, Parent, ancestors, content_sha256, custody_of, parent_ids
from engines.artifacts.manifest import manifest_sha256, read_manifest, write_manifest


def stage(folder: Path, name: str, *parents: Path, checkpoint: Path | None = None, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "data.bin").write_text(name)
    custody = custody_of([Parent(path.name, path) for path in parents], checkpoint)
    write_manifest(folder, **{"run": "r", "stage": name, "kind": "fake", "attempt": 1, "custody": custody, **fields})
    return folder


def links(folder: Path) -> dict[str, dict[str, Any]]:
    return {link["id"]: link for link in ancestors(read_manifest(folder))}


def test_every_ancestor_is_listed_once_and_older_ones_first(tmp_path: Path) -> None:
    data = stage(tmp_path / "data", "data")
    tokenizer = stage(tmp_path / "tokenizer", "tokenizer", data)
    model = stage(tmp_path / "model", "model", data, tokenizer)
    gguf = stage(tmp_path / "gguf", "gguf", model, data)
    listed = ancestors(read_manifest(gguf))
    assert [link["stage"] for link in listed] == ["data", "tokenizer", "model"]
    assert parent_ids(read_manifest(gguf)) == [manifest_sha256(model), manifest_sha256(data)]
    assert links(gguf)[manifest_sha256(model)]["parents"] == [manifest_sha256(data), manifest_sha256(tokenizer)]


def test_a_checkpoint_is_the_link_between_a_training_stage_and_its_inputs(tmp_path: Path) -> None:
    data = stage(tmp_path / "data", "data")
    step = stage(tmp_path / "step-5", "model", data, step=5)
    model = stage(tmp_path / "model", "model", data, checkpoint=step)
    assert parent_ids(read_manifest(model)) == [manifest_sha256(step)]
    assert links(model)[manifest_sha256(step)]["step"] == 5
    assert links(model)[manifest_sha256(step)]["parents"] == [manifest_sha256(data)]


def test_a_checkpoint_without_parents_gets_the_stages_inputs(tmp_path: Path) -> None:
    data = stage(tmp_path / "data", "data")
    step = tmp_path / "step-5"
    step.mkdir()
    (step / "state").write_text("x")
    write_manifest(step, run="r", stage="model", attempt=1, step=5)
    model = stage(tmp_path / "model", "model", data, checkpoint=step)
    assert links(model)[manifest_sha256(step)]["parents"] == [manifest_sha256(data)]
    assert links(model)[manifest_sha256(step)]["kind"] == "checkpoint"


def test_a_folder_without_a_manifest_is_known_by_its_content(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "deep").mkdir(parents=True)
    (foreign / "deep" / "a.txt").write_text("one")
    listed = custody_of([Parent("foreign", foreign)])
    (link,) = listed["ancestors"]
    assert (link["method"], link["id"], link["folder"]) == ("content", content_sha256(foreign), str(foreign))
    (foreign / "deep" / "a.txt").write_text("two")
    assert content_sha256(foreign) != link["id"]


def test_a_file_is_known_by_its_bytes_under_its_name(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("row")
    inner = hashlib.sha256(b"row").hexdigest()
    assert content_sha256(file) == hashlib.sha256(f"x.jsonl\0{inner}\n".encode()).hexdigest()


def test_an_unreadable_source_is_known_by_name_and_the_stage_is_kept(tmp_path: Path) -> None:
    listed = custody_of([Parent("org/model", None), Parent("gone", tmp_path / "gone")])
    assert [(link["method"], link["kind"], link["folder"]) for link in listed["ancestors"]] == [
        ("name", "hub", "org/model"),
        ("name", "folder", str(tmp_path / "gone")),
    ]


@pytest.mark.parametrize(
    "custody",
    [
        None,
        7,
        {"ancestors": 3, "parents": "x"},
        {
            "ancestors": [1, None, {}, {"id": 5}, {"id": "a"}, {"id": "", "method": "name", "kind": "hub"}],
            "parents": [1],
        },
        {
            "ancestors": [{"id": "a", "method": "name", "kind": "hub", "attempt": True, "parents": {"b": 1}}]
            * (MAX_LINKS + 5)
        },
    ],
)
def test_a_hostile_custody_value_is_read_safely(custody: Any, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    body = {"format": 1, "run": ["r"], "stage": 7, "custody": custody, "files": []}
    (folder / "manifest.json").write_text(json.dumps(body))
    listed = custody_of([Parent("x", folder)])
    assert len(listed["ancestors"]) <= 2
    assert listed["parents"] == [manifest_sha256(folder)]
    assert all(isinstance(item, str) for link in listed["ancestors"] for item in link["parents"])
