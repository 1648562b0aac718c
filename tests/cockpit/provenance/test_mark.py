"""The mark of a run's processes: no other process is believed to be the run's, whatever its folder says."""

from __future__ import annotations

import shutil
from pathlib import Path

from cockpit.provenance.mark import SUPERVISOR_MODULE, RunMark, lives, serves, works_elsewhere
from cockpit.provenance.trust import seal
from cockpit.supervision.engine_process import find_engine
from cockpit.supervision.process_tree import kill_tree, run_processes
from engines.identity import Identity
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from tests.cockpit.runs.journaled_runs import a_run, engine_of, stopped_process


def identity(pid: int) -> Identity:
    found = Identity.of(pid)
    assert found is not None
    return found


def test_a_forged_engine_json_finds_and_kills_nothing(tmp_path: Path) -> None:
    """A stranger's folder names the pid, start time and boot id of any process of this user."""
    run = a_run(tmp_path)
    with engine_of(run, marked=False) as victim:
        assert find_engine(run, "base", 1) is None
        assert not lives(run, identity(victim.pid))
        assert kill_tree(run.root, [], term_grace_s=0.0) == []
        assert victim.poll() is None


def test_the_engine_of_one_run_is_not_that_of_another_run_or_of_a_copy(tmp_path: Path) -> None:
    run, other = a_run(tmp_path), a_run(tmp_path, "other")
    with engine_of(run) as engine:
        assert find_engine(run, "base", 1) is not None
        copy = RunDir(Path(shutil.copytree(run.root, tmp_path / "copy", ignore=shutil.ignore_patterns("*.fifo"))))
        shutil.copytree(run.stages, other.stages, dirs_exist_ok=True)
        for stranger in (copy, other):
            assert find_engine(stranger, "base", 1) is None
            assert kill_tree(stranger.root, [], term_grace_s=0.0) == []
        assert engine.poll() is None


def test_a_renamed_run_keeps_its_engine(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with engine_of(run) as engine:
        moved = RunDir(run.root.rename(tmp_path / "moved"))
        assert find_engine(moved, "base", 1) is not None
        assert [found.pid for found in run_processes(moved.root, [])] == [engine.pid]
        RunDir(run.root).root.mkdir()
        assert run_processes(run.root, []) == [], "the folder that has the old name now is another run"


def test_trusting_a_run_again_keeps_the_mark_of_its_engine(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    before = RunMark.of(run)
    run.recipe_json.write_text("{ }")
    seal(run)
    assert RunMark.of(run) == before


def test_an_engine_of_an_older_cockpit_is_found_by_the_run_s_path(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.launch_token.unlink()
    with engine_of(run):
        assert RunMark.of(run).environment() == {"COCKPIT_RUN_ROOT": str(run.root)}
        assert find_engine(run, "base", 1) is not None
        assert find_engine(RunDir(run.root.rename(tmp_path / "moved")), "base", 1) is None


def test_processes_that_work_in_another_folder_are_seen_to(tmp_path: Path) -> None:
    """After a move they write to the old path; a copy that shares the lock's file has no processes of its own."""
    run = a_run(tmp_path)
    with stopped_process(SUPERVISOR_MODULE, str(run.root)) as supervisor, engine_of(run) as engine:
        lock = Lock(run.supervisor_lock)
        assert lock.acquire(vars(supervisor))
        copy = RunDir(tmp_path / "copy")
        copy.root.mkdir()
        copy.supervisor_lock.hardlink_to(run.supervisor_lock)
        link = RunDir(tmp_path / "link")
        link.root.symlink_to(run.root)
        assert works_elsewhere(run, identity(engine.pid)) is None
        assert works_elsewhere(link) is None
        assert serves(link, supervisor, SUPERVISOR_MODULE), "another way to the same folder"
        assert not serves(copy, supervisor, SUPERVISOR_MODULE)
        assert works_elsewhere(copy) == run.root
        moved = RunDir(run.root.rename(tmp_path / "moved"))
        assert works_elsewhere(moved) == run.root
        lock.release()
        assert works_elsewhere(moved, identity(engine.pid)) == run.root
        moved.root.rename(run.root)
        assert works_elsewhere(run, identity(engine.pid)) is None
