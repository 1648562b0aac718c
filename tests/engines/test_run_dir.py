from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engines.run_dir import (
    FORMAT,
    RUN_ID,
    Lock,
    RunDir,
    RunDirError,
    create_run_dir,
    lock_holder,
    lock_is_held,
)


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


HOLD = """
import os, sys
from pathlib import Path
from engines.run_dir import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.acquire({"pid": os.getpid()}), flush=True)
sys.stdin.read()
"""


def test_a_lock_has_one_named_holder_and_a_dead_process_holds_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not lock_is_held(path)
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    answers = [holder.stdout.readline().strip() for holder in holders]
    assert sorted(answers) == ["False"] * 5 + ["True"]
    owner = holders[answers.index("True")]
    assert lock_is_held(path)
    assert lock_holder(path) == {"pid": owner.pid}
    assert not Lock(path).acquire({"pid": 0})
    assert lock_holder(path) == {"pid": owner.pid}, "a refused process writes nothing"
    owner.kill()
    owner.wait()
    assert not lock_is_held(path)
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_forks_hold_the_lock_until_the_last_of_them_ends(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.acquire({})
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    lock.release()
    assert lock_is_held(tmp_path / "lock")
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)
    assert not lock_is_held(tmp_path / "lock")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b"7"])
def test_an_unreadable_holder_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert lock_holder(tmp_path / "lock") == {}
