"""Starting a supervisor: refused before anything is written, where its records could not be."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cockpit.launching.start import start_supervisor
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import StartReason
from recipes.problems import OperatorError
from tests.cockpit.runs.journaled_runs import a_run, write_journal
from tests.permissions import modes_count


@pytest.mark.parametrize("what", ["journal", "supervisor_lock", "control", "stages", "root"])
def test_a_run_that_cannot_be_written_is_not_started_and_the_path_is_named(tmp_path: Path, what: str) -> None:
    """A supervisor that cannot write would wait for space, hold the run, and leave it shown as it ended."""
    run = a_run(tmp_path)
    write_journal(run)
    run.supervisor_lock.touch()
    path: Path = getattr(run, what)
    before = _contents(run)
    path.chmod(0o500 if path.is_dir() else 0o400)
    with modes_count(), pytest.raises(OperatorError, match="is read-only") as refusal:
        start_supervisor(run, StartReason.RESUME)
    assert refusal.value.message == f"{run.id} is read-only: {path} cannot be written"
    assert refusal.value.hint == f"chmod -R u+w {run.root}"
    path.chmod(0o700 if path.is_dir() else 0o600)
    assert _contents(run) == before
    assert not lock_is_held(run.supervisor_lock)


def test_a_supervisor_gets_the_folder_itself_and_not_the_link_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its engine would lose the folder together with the link."""
    run, link, given = a_run(tmp_path), RunDir(tmp_path / "link"), []

    def started(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        given.append(command[3])
        return subprocess.CompletedProcess(command, 0, "", "")

    link.root.symlink_to(run.root)
    monkeypatch.setattr(subprocess, "run", started)
    start_supervisor(link, StartReason.RESUME)
    start_supervisor(run, StartReason.RESUME)
    assert given == [str(run.root)] * 2


def _contents(run: RunDir) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
