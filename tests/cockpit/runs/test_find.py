from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cockpit.keeping.uses import uses_in
from cockpit.runs.find import find_run, run_ids, runs_root
from cockpit.runs.watch import RunWatch
from recipes.problems import OperatorError
from tests.cockpit.runs.journaled_runs import a_run, write_journal
from tests.permissions import modes_count


def make(root: Path, *ids: str) -> None:
    """Run directories, each newer than the previous one."""
    for age, name in enumerate(ids):
        (root / name).mkdir(parents=True)
        (root / name / "run.json").write_text(json.dumps({"format": 1, "id": name, "recipe": "r"}))
        os.utime(root / name / "run.json", (1_000_000 + age, 1_000_000 + age))


def test_the_folder_of_runs_is_the_one_named_then_the_environment_s_then_the_account_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("COCKPIT_RUNS_DIR", "~/runs")
    monkeypatch.chdir(tmp_path)
    assert runs_root("mine") == tmp_path / "mine"
    assert runs_root() == Path("/home/ada/runs")
    monkeypatch.delenv("COCKPIT_RUNS_DIR")
    assert runs_root() == tmp_path / "data" / "cockpit" / "runs"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert runs_root() == Path("/home/ada/.local/share/cockpit/runs")


def test_only_run_directories_are_runs(tmp_path: Path) -> None:
    make(tmp_path, "20261120-2130-atlas", ".new-17-42")
    (tmp_path / "notes").mkdir()
    (tmp_path / "20261120-2131-file").write_text("")
    (tmp_path / "20261120-2132-gone").symlink_to(tmp_path / "nowhere")
    assert run_ids(tmp_path) == ["20261120-2130-atlas"]
    assert run_ids(tmp_path / "nowhere") == []
    assert run_ids(tmp_path / "20261120-2131-file") == []


def test_the_newest_run_is_first_and_within_a_minute_the_one_that_was_made_last(tmp_path: Path) -> None:
    order = [
        "20261119-2359-zeta",
        "20261120-2130-zeta",
        "20261120-2130-atlas",
        "20261120-2130-atlas-2",
        "20261120-2130-base",
        "20261120-2130-atlas-10",
        "20261120-2131-atlas",
    ]
    make(tmp_path, *order)
    assert run_ids(tmp_path) == order[::-1]
    assert find_run(tmp_path, "last").id == "20261120-2131-atlas"


def test_copied_runs_whose_dates_are_equal_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    names = ["20261120-2130-atlas-10", "20261120-2130-atlas-2", "20261120-2130-atlas"]
    make(tmp_path, *names)
    for name in names:
        os.utime(tmp_path / name / "run.json", (5, 5))
    assert run_ids(tmp_path) == names


def test_a_run_is_named_by_its_id_a_prefix_its_path_or_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "20261120-2130-atlas", "20261120-2130-atlas-2", "20261121-0900-base")
    assert find_run(tmp_path, "20261120-2130-atlas").id == "20261120-2130-atlas", "a whole id is no prefix of another"
    assert find_run(tmp_path, "20261121").id == "20261121-0900-base"
    monkeypatch.chdir(tmp_path)
    for path in ("./20261120-2130-atlas", str(tmp_path / "20261120-2130-atlas"), "20261120-2130-atlas/"):
        assert find_run(tmp_path / "elsewhere", path).root == tmp_path / "20261120-2130-atlas"
    monkeypatch.chdir(tmp_path / "20261121-0900-base")
    assert find_run(tmp_path, ".").id == "20261121-0900-base"


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("20261120", "matches 2 runs"),
        ("atlas", "similar: 20261120"),
        ("", "matches 3 runs"),
        ("nothing", "no run 'nothing'"),
        ("./nothing", "is not a run directory"),
        ("..", "is not a run directory"),
        ("\x1b[2J", "no run '\\x1b[2J'"),
        ("a" * 5000, "no run"),
        ("a/" * 3000, "is not a run directory"),
    ],
)
def test_a_name_that_matches_no_run_or_several_is_an_error_with_a_hint(tmp_path: Path, wanted: str, says: str) -> None:
    make(tmp_path, "20261120-2130-atlas", "20261120-2140-atlas", "20261121-0900-base")
    with pytest.raises(OperatorError) as problem:
        find_run(tmp_path, wanted)
    assert says in str(problem.value)
    assert problem.value.hint


def test_last_without_runs_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no runs in"):
        find_run(tmp_path, "last")


@pytest.mark.parametrize("back_s", [20, 3600, 86_400])
def test_a_run_launched_after_the_clock_was_set_back_is_still_the_last(tmp_path: Path, back_s: int) -> None:
    first = a_run(tmp_path, "first")
    ahead = datetime.now().astimezone() + timedelta(seconds=back_s)
    first.root.rename(tmp_path / f"{ahead:%Y%m%d-%H%M}-first")  # as if it had been launched then
    made = tmp_path / f"{ahead:%Y%m%d-%H%M}-first" / "run.json"
    os.utime(made, (ahead.timestamp(), ahead.timestamp()))
    second, third = a_run(tmp_path, "second"), a_run(tmp_path, "a-third")
    assert run_ids(tmp_path) == [third.id, second.id, made.parent.name]
    assert find_run(tmp_path, "last").id == third.id


def test_a_folder_that_claims_to_be_from_the_far_future_does_not_date_the_next_runs(tmp_path: Path) -> None:
    make(tmp_path, "29991231-2359-odd", "20269999-9999-odd")
    before = datetime.now().astimezone()
    made = a_run(tmp_path).id
    days = {f"{moment:%Y%m%d}" for moment in (before, datetime.now().astimezone())}  # midnight may be between
    assert made[:8] in days


def test_a_run_that_may_not_be_opened_is_listed_as_such_and_keeps_nothing_else_from_working(tmp_path: Path) -> None:
    """In a folder that several users share, the runs of the others are private."""
    mine, other = a_run(tmp_path, "mine"), a_run(tmp_path, "other")
    other.root.chmod(0o000)
    try:
        with modes_count():
            rows = {row.id: row for row in RunWatch(tmp_path).poll()}
            assert str(rows[other.id].state) == "unreadable"
            assert "Permission denied" in rows[other.id].reason
            assert find_run(tmp_path, "last").id == mine.id
            with pytest.raises(OperatorError, match="cannot be opened: Permission denied"):
                find_run(tmp_path, other.id)
            uses_in(tmp_path)
            assert other.all_outs() == []
    finally:
        other.root.chmod(0o700)


def test_a_run_whose_journal_may_not_be_read_is_unreadable_and_in_no_other_state(tmp_path: Path) -> None:
    """Read as an empty journal, it would say that the run is lost and that no stage has started."""
    run = a_run(tmp_path, "mine")
    write_journal(run, "failed")
    assert [str(row.state) for row in RunWatch(tmp_path).poll()] == ["failed"]
    run.journal.chmod(0o000)
    with modes_count():
        (row,) = RunWatch(tmp_path).poll()
        assert str(row.state) == "unreadable"
        assert f"Permission denied: '{run.journal}'" in row.reason
        for wanted in (run.id, "last", str(run.root)):
            with pytest.raises(OperatorError, match=r"journal.jsonl cannot be opened: Permission denied"):
                find_run(tmp_path, wanted)
    run.journal.chmod(0o600)
    assert find_run(tmp_path, "last").id == run.id
