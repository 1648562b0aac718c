"""A manifest lists a folder correctly, and a hostile one is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.manifest import (
    MAX_MANIFEST_BYTES,
    ManifestError,
    commit_folder,
    manifest_sha256,
    read_manifest,
    verify_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "deep" / "er").mkdir(parents=True)
    (made / "b.bin").write_bytes(b"bb")
    (made / "deep" / "er" / "a.txt").write_text("a")
    return made


def test_files_are_listed_sorted_with_size_and_hash_and_the_identity_is_the_manifests(folder: Path) -> None:
    sha256 = write_manifest(folder, step=3, metrics={"loss": float("nan")})
    manifest = read_manifest(folder)
    assert [(entry["path"], entry["bytes"]) for entry in manifest["files"]] == [("b.bin", 2), ("deep/er/a.txt", 1)]
    assert manifest["step"] == 3
    assert manifest["metrics"] == {"loss": "NaN"}
    assert manifest_sha256(folder) == sha256
    assert verify_manifest(folder) == []


def test_writing_again_does_not_list_the_manifest_itself(folder: Path) -> None:
    assert write_manifest(folder) == write_manifest(folder)


def test_missing_shortened_and_changed_files_are_named_and_extra_ones_tolerated(folder: Path) -> None:
    (folder / "c.bin").write_bytes(b"ccc")
    write_manifest(folder)
    (folder / "extra").write_text("later")
    assert verify_manifest(folder) == []
    (folder / "b.bin").write_bytes(b"bX")
    (folder / "c.bin").write_bytes(b"c")
    (folder / "deep" / "er" / "a.txt").unlink()
    problems = verify_manifest(folder)
    assert [problem.split()[0] for problem in problems] == ["b.bin", "c.bin", "deep/er/a.txt"]
    assert len(verify_manifest(folder, hashes=False)) == 2


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "", ".", "manifest.json", "a\0b"])
def test_paths_out_of_the_folder_are_refused(folder: Path, path: str) -> None:
    body = {"format": 1, "files": [{"path": path, "bytes": 0, "sha256": "0" * 64}]}
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(ManifestError, match="not a file inside the folder"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"format":2,"files":[]}',
        b'{"format":true,"files":[]}',
        b'{"format":1,"files":[1]}',
        b'{"format":1,"files":[{"path":"a","bytes":"1","sha256":"x"}]}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused(folder: Path, body: bytes) -> None:
    (folder / "manifest.json").write_bytes(body)
    [problem] = verify_manifest(folder)
    assert problem.startswith("manifest.json")


def test_a_huge_manifest_a_link_and_a_pipe_are_not_read(folder: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    with path.open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    assert "larger" in verify_manifest(folder)[0]
    path.unlink()
    (tmp_path / "other.json").write_text('{"format":1,"files":[]}')
    path.symlink_to(tmp_path / "other.json")
    assert "cannot be read" in verify_manifest(folder)[0]
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in verify_manifest(folder)[0]


def test_a_link_in_place_of_a_file_does_not_verify(folder: Path, tmp_path: Path) -> None:
    write_manifest(folder)
    (tmp_path / "outside").write_bytes(b"bb")
    (folder / "b.bin").unlink()
    (folder / "b.bin").symlink_to(tmp_path / "outside")
    assert verify_manifest(folder) == ["b.bin is not a file"]
    (folder / "b.bin").unlink()
    (folder / "b.bin").write_bytes(b"bb")
    (folder / "deep").rename(tmp_path / "moved")
    (folder / "deep").symlink_to(tmp_path / "moved")
    assert verify_manifest(folder) == ["deep/er/a.txt is outside the folder"]


def test_a_folder_with_a_link_gets_no_manifest(folder: Path) -> None:
    (folder / "link").symlink_to("b.bin")
    with pytest.raises(ManifestError, match="neither a file nor a folder"):
        write_manifest(folder)
    assert not (folder / "manifest.json").exists()


def test_everything_is_synced_before_the_manifest_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    write_manifest(folder)
    assert set(synced[:-2]) == {"b.bin", "a.txt", "deep", "er"}
    assert synced[-2].startswith(".manifest.json")
    assert synced[-1] == "made"


def test_a_full_disk_leaves_no_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        write_manifest(folder)
    assert sorted(entry.name for entry in folder.iterdir()) == ["b.bin", "deep"]


def test_a_replaced_folder_is_kept_under_the_next_free_number(tmp_path: Path) -> None:
    for number in range(3):
        draft = tmp_path / "draft"
        draft.mkdir()
        (draft / "n").write_text(str(number))
        commit_folder(draft, tmp_path / "out")
    assert [(tmp_path / name / "n").read_text() for name in ("out", "out.1", "out.2")] == ["2", "0", "1"]
