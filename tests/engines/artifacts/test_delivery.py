"""Files of a finished output in a folder that the operator named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.artifacts import delivery
from engines.artifacts.delivery import deliver
from recipes.problems import OperatorError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name in ("m-F16.gguf", "README.md", "manifest.json", "sub/part"):
        (folder / name).write_text(f"content of {name}")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_file_is_there_and_a_change_of_a_small_one_leaves_the_runs_own(out: Path, tmp_path: Path) -> None:
    deliver(out, tmp_path / "new" / "dir", overwrite=False)
    assert contents(tmp_path / "new" / "dir") == contents(out)
    with (tmp_path / "new" / "dir" / "README.md").open("a") as file:
        file.write("edited")
    assert (out / "README.md").read_text() == "content of README.md"


def test_a_large_file_takes_no_second_room_on_the_same_disk(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LINKED_BYTES", 1)
    monkeypatch.setattr(delivery, "_cloned", lambda _source, _target: False)
    deliver(out, tmp_path / "dir", overwrite=False)
    assert (tmp_path / "dir" / "m-F16.gguf").samefile(out / "m-F16.gguf")
    deliver(out, tmp_path / "dir", overwrite=True)
    assert contents(tmp_path / "dir") == contents(out)


def test_nothing_is_replaced_without_permission_and_then_nothing_is_placed(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "dir"
    target.mkdir()
    (target / "m-F16.gguf").write_text("mine")
    with pytest.raises(OperatorError, match=r"already has m-F16\.gguf") as caught:
        deliver(out, target, overwrite=False)
    assert "--force" in caught.value.hint
    assert contents(target) == {"m-F16.gguf": "mine"}
    (target / "other").write_text("kept")
    deliver(out, target, overwrite=True)
    assert contents(target) == {**contents(out), "other": "kept"}


def test_a_link_in_the_folder_is_replaced_and_not_followed(out: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "dir", tmp_path / "elsewhere"
    target.mkdir()
    elsewhere.write_text("untouched")
    (target / "README.md").symlink_to(elsewhere)
    with pytest.raises(OperatorError, match="already has"):
        deliver(out, target, overwrite=False)
    deliver(out, target, overwrite=True)
    assert elsewhere.read_text() == "untouched"
    assert not (target / "README.md").is_symlink()


def test_a_file_that_appears_meanwhile_is_kept_and_the_placed_ones_are_removed(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "dir"
    real = delivery._copy

    def copy_and_appear(source: Path, temporary: Path) -> None:
        real(source, temporary)
        if source.name == "part":
            (target / "sub" / "part").write_text("another process")

    monkeypatch.setattr(delivery, "_copy", copy_and_appear)
    with pytest.raises(OperatorError, match="already has part"):
        deliver(out, target, overwrite=False)
    assert contents(target) == {"sub/part": "another process"}
    assert not [name for _, _, names in os.walk(target) for name in names if name.endswith(".tmp")]


def test_a_target_that_is_a_file_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OperatorError, match="is not a folder"):
        deliver(out, tmp_path / "file", overwrite=True)
