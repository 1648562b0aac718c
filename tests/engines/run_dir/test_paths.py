from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.journal import journal_files
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import FORMAT, RunDir, RunDirError


def make(root: Path, name: str = "atlas") -> RunDir:
    return create_run_dir(
        root, name=name, recipe="atlas", recipe_toml="schema = 1\n", recipe_json={}, plan_json={}, version="1"
    )


@pytest.mark.parametrize("content", [None, "", "{", "[]", "7", "\xff"])
def test_a_folder_that_is_not_a_run_directory_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunDirError, match="is not a run directory"):
        RunDir(tmp_path).read_run_json()


@pytest.mark.parametrize("found", [FORMAT + 1, "1", None, 1e9])
def test_a_directory_of_a_newer_cockpit_is_not_written_to(tmp_path: Path, found: object) -> None:
    run = make(tmp_path)
    run.require_writable_format()
    run.run_json.write_text(json.dumps({"format": found}))
    with pytest.raises(RunDirError, match="newer than this Cockpit"):
        run.require_writable_format()


def test_attempts_are_counted_by_their_folders_and_nothing_else(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.attempts("base") == []
    for name in ("2", "10", "1", "out", "out.1", "-3", "3x"):
        (run.stage_dir("base") / name).mkdir(parents=True)
    (run.stage_dir("base") / "4").write_text("a file")
    assert run.attempts("base") == [1, 2, 10]


def test_paths_in_journals_are_relative_to_the_run_so_that_it_can_be_moved(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.relative(run.checkpoints("base", 2) / "step-8") == "stages/base/2/checkpoints/step-8"
    assert run.relative(Path("/models/base")) == "/models/base"


# ---- locks


def test_a_run_that_is_removed_between_two_looks_has_no_outputs_and_no_further_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "gone")
    monkeypatch.setattr(Path, "is_dir", lambda _path: True)  # it was there at the first look
    assert journal_files(run.root) == [run.journal]
    assert run.all_outs() == run.all_outs(replaced=True) == []
