"""Who may act on a run: the user who launched it on this machine, in a folder that no other user can change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit.provenance import records
from cockpit.provenance.trust import allow_recipe, require_trusted, seal, token_of, why_not_ours, why_untrusted
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError
from tests.cockpit.runs.journaled_runs import a_run, write_journal

ANOTHER_USER = 54_321
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to another user")


@pytest.fixture(autouse=True)
def _own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def copied(run: RunDir, target: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(run.root, target, ignore=shutil.ignore_patterns("*.fifo"))))


def test_a_launched_run_is_trusted_also_after_its_owner_renamed_moved_or_copied_it(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs")
    write_journal(run)
    assert why_untrusted(run) == ""
    require_trusted(run)
    renamed = RunDir(run.root.rename(tmp_path / "renamed"))
    assert why_untrusted(renamed) == ""
    assert why_untrusted(copied(renamed, tmp_path / "copy")) == ""


def test_a_run_without_a_token_is_read_only_and_the_refusal_names_the_command(tmp_path: Path) -> None:
    run = create_run_dir(
        tmp_path, name="old", recipe="old", recipe_toml="", recipe_json={}, plan_json={}, version="0.1"
    )
    assert why_not_ours(run) == ""
    assert "older Cockpit" in why_untrusted(run)
    with pytest.raises(OperatorError, match="is read-only") as caught:
        require_trusted(run)
    assert f"cockpit trust {run.root}" in caught.value.hint
    seal(run)
    assert why_untrusted(run) == ""


def test_a_token_that_this_user_never_recorded_is_not_trusted(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs")
    run.launch_token.write_text("ab" * 32)
    assert why_untrusted(run) == "this user did not launch it on this machine"
    run.launch_token.write_text("../../etc/passwd")
    assert "no launch token" in why_untrusted(run)


def test_a_known_token_with_another_recipe_is_not_trusted(tmp_path: Path) -> None:
    """A run that was sent to another person and comes back with another interpreter."""
    run = a_run(tmp_path / "runs")
    run.recipe_json.write_text('{"python": "/tmp/evil"}')
    assert why_untrusted(run) == "its recipe.json is not the one that was launched"


def test_a_run_of_another_machine_with_the_same_home_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "runs")
    monkeypatch.setattr(records, "machine_id", lambda: "another machine")
    assert why_untrusted(run) == "it was launched on another machine"


@pytest.mark.parametrize("part", ["", "recipe.json", "control", "journal.jsonl", "stages", "stages/base", "run.json"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_what_another_user_may_write_is_neither_trusted_nor_written_into(tmp_path: Path, part: str, mode: int) -> None:
    run = a_run(tmp_path / "runs")
    run.attempt_dir("base", 1).mkdir(parents=True)
    path = run.root / part
    path.chmod(path.stat().st_mode | mode)
    reason = why_not_ours(run)
    assert reason.startswith(f"other users may write {path}")
    assert why_untrusted(run) == reason


def test_a_token_that_others_can_read_proves_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs")
    run.launch_token.chmod(0o640)
    assert token_of(run) is None
    assert "no launch token" in why_untrusted(run)


@as_root
@pytest.mark.parametrize("part", ["", "recipe.json", "control", "journal.jsonl", "stages"])
def test_what_another_user_owns_is_neither_trusted_nor_written_into(tmp_path: Path, part: str) -> None:
    run = a_run(tmp_path / "runs")
    os.chown(run.root / part, ANOTHER_USER, ANOTHER_USER)
    assert why_not_ours(run) == f"user {ANOTHER_USER} owns {run.root / part}".rstrip("/")
    assert why_untrusted(run)


@as_root
@pytest.mark.parametrize("at", ["run", "parent"])
def test_a_run_that_is_reached_through_another_user_s_link_is_not_trusted(tmp_path: Path, at: str) -> None:
    run = a_run(tmp_path / "runs")
    link = tmp_path / "link"
    link.symlink_to(run.root if at == "run" else run.root.parent)
    through = RunDir(link if at == "run" else link / run.id)
    assert why_untrusted(through) == "", "the link is this user's own"
    os.chown(link, ANOTHER_USER, ANOTHER_USER, follow_symlinks=False)
    assert why_untrusted(through) == f"user {ANOTHER_USER} owns the link {link}"
    second = tmp_path / "second"
    second.symlink_to(link)
    assert why_untrusted(RunDir(second if at == "run" else second / run.id)).endswith(f"owns the link {link}")


def test_links_without_an_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "too many links" in why_not_ours(RunDir(tmp_path / "a"))


def test_a_folder_that_is_gone_is_not_trusted(tmp_path: Path) -> None:
    assert "cannot be examined" in why_untrusted(RunDir(tmp_path / "gone"))


def test_records_are_private_and_named_by_the_hash_of_the_token(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs")
    token = token_of(run)
    assert token is not None
    assert run.launch_token.stat().st_mode & 0o777 == 0o600
    folder = records.records_folder()
    assert folder == tmp_path / "state" / "cockpit" / "launched"
    assert folder.stat().st_mode & 0o777 == 0o700
    (record,) = folder.iterdir()
    assert record.stat().st_mode & 0o777 == 0o600
    assert token not in record.name + record.read_text()
    records.forget(token)
    assert list(folder.iterdir()) == []
    assert why_untrusted(run) == "this user did not launch it on this machine"


@pytest.mark.parametrize("spoil", [lambda f: f.chmod(0o770), lambda f: f.chmod(0o707), lambda f: f.parent.chmod(0o777)])
def test_a_folder_of_records_that_another_user_may_write_proves_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    run = a_run(tmp_path / "runs")
    spoil(records.records_folder())
    assert "is not private" in why_untrusted(run)
    with pytest.raises(OperatorError, match="is not private") as caught:
        a_run(tmp_path / "runs", "second")
    assert "XDG_STATE_HOME" in caught.value.hint
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run.id], "nothing is left of the second"


def test_a_folder_of_records_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state" / "cockpit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match="is not private"):
        a_run(tmp_path / "runs")
    (tmp_path / "state" / "cockpit").unlink()
    (tmp_path / "state" / "cockpit").write_text("a file")
    with pytest.raises(OperatorError, match="could not record the launch"):
        a_run(tmp_path / "runs")


def test_a_relative_state_folder_is_ignored_as_the_specification_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert records.records_folder() == Path("~/.local/state/cockpit/launched").expanduser()


def test_a_recipe_that_a_resume_changes_stays_trusted_before_and_after_it_is_written(tmp_path: Path) -> None:
    run = a_run(tmp_path / "runs")
    allow_recipe(run, b'{"changed": 1}')
    assert why_untrusted(run) == "", "a kill between the two writes leaves a trusted run"
    run.recipe_json.write_bytes(b'{"changed": 1}')
    assert why_untrusted(run) == ""
    for number in range(2, 60):
        allow_recipe(run, b'{"changed": %d}' % number)
    run.recipe_json.write_bytes(b'{"changed": 59}')
    assert why_untrusted(run) == "", "the record stays small"


def test_a_file_that_a_supervisor_removes_during_the_look_does_not_make_a_run_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "runs")
    write_journal(run, "stopped")
    run.exit_json.write_text("{}")
    there = os.path.lexists

    def look(path: Path) -> bool:
        found = there(path)
        if path == run.exit_json:
            run.exit_json.unlink()  # as a supervisor does at its start
        return found

    monkeypatch.setattr(os.path, "lexists", look)
    assert why_untrusted(run) == ""
    assert not run.exit_json.exists()
