from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest

from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import FORMAT, RUN_ID, RunDir, RunDirError


def make(root: Path, name: str = "atlas") -> RunDir:
    return create_run_dir(
        root, name=name, recipe="atlas", recipe_toml="schema = 1\n", recipe_json={}, plan_json={}, version="1"
    )


def test_a_run_directory_is_complete_and_private(tmp_path: Path) -> None:
    run = make(tmp_path / "new" / "runs")
    assert RUN_ID.match(run.id)
    assert re.fullmatch(r"\d{8}-\d{4}-atlas", run.id)
    assert run.read_run_json()["format"] == FORMAT
    assert run.read_run_json()["id"] == run.id
    assert stat.S_ISFIFO(run.fifo.stat().st_mode)
    for path in (run.journal, run.recipe_toml, run.recipe_json, run.plan_json, run.control, run.root / "stages"):
        assert path.exists()
    for path in [run.root, *run.root.rglob("*")]:
        assert not path.stat().st_mode & 0o077, f"{path} is readable only by its owner"
    assert os.listdir(run.root.parent) == [run.id], "no partial directory is left"


def test_many_launches_of_one_minute_get_different_ids(tmp_path: Path) -> None:
    made: list[RunDir] = []
    threads = [threading.Thread(target=lambda: made.append(make(tmp_path))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = {run.id for run in made}
    assert len(ids) == 12
    assert all(run.read_run_json()["id"] == run.id for run in made)


def test_a_root_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot create a run directory"):
        make(tmp_path / "file" / "runs")


def test_a_file_system_without_pipes_still_takes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mkfifo", refuse)
    run = make(tmp_path)
    assert run.journal.exists()
    assert not run.fifo.exists()
