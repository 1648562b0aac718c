from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cockpit.provenance.mark import SAMPLER_MODULE, SUPERVISOR_MODULE
from cockpit.runs.reader import RunReader, read_now
from cockpit.runs.state import fold
from engines.events.kinds import AnyEvent
from engines.events.records import encode_record
from engines.events.writers import WriterOpened
from engines.identity import Identity
from engines.journal import Record, read_journal
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import WriterRole
from tests.cockpit.runs.journaled_runs import a_run, engine_of, stopped_process, write_journal


def events(records: list[Record]) -> list[AnyEvent]:
    return [record.event for record in records]


def lines(run: RunDir) -> list[bytes]:
    return run.journal.read_bytes().splitlines()


@pytest.mark.parametrize("kind", [{}, {"live": True}, {"lines": True}])
def test_a_run_is_read_once_as_it_grows_and_its_state_is_the_fold_of_what_was_read(
    tmp_path: Path, kind: dict[str, bool]
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    reader = RunReader(run, **kind)
    first = reader.poll()
    assert events(first) == list(read_journal(run.journal))
    assert [record.line for record in first] == lines(run)
    assert reader.poll() == []
    write_journal(run, "failed")
    assert len(first) + len(reader.poll()) == len(lines(run))
    assert reader.state == fold(read_journal(run.journal))
    reader.close()


def test_a_long_journal_is_read_in_parts_and_says_that_there_is_more(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, steps=3000)
    reader = RunReader(run)
    read, was_behind = len(reader.poll(max_records=10)), reader.behind
    assert was_behind
    assert 10 <= read < 1000
    assert reader.catch_up()
    assert not reader.behind
    assert reader.state == read_now(run).state
    assert not reader.catch_up(), "nothing was new"


def test_what_other_ranks_wrote_is_read_too_but_not_among_the_lines_of_the_journal(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    (run.journal_parts / "rank1.jsonl").write_bytes(lines(run)[0].replace(b'"w":"', b'"w":"r') + b"\n")
    assert len(RunReader(run).poll()) == len(lines(run)) + 1
    assert [record.line for record in RunReader(run, lines=True).poll()] == lines(run)


def test_damage_is_counted_and_costs_nothing_else(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    whole = read_now(run).state
    with run.journal.open("ab") as file:
        file.write(b'rubbish\n{"v":1,"w":"x","seq":0,"t":1.0,"m":1.0,"k":"a_kind_of_tomorrow"}\n')
    state = read_now(run).state
    assert (state.unreadable, state.unknown) == (1, 1)
    assert state == whole


@pytest.mark.parametrize("kind", [{}, {"live": True}, {"lines": True}])
def test_a_journal_that_was_replaced_is_folded_again(tmp_path: Path, kind: dict[str, bool]) -> None:
    run, other = a_run(tmp_path), a_run(tmp_path, "other")
    write_journal(run, None, steps=4)
    write_journal(other, "failed")
    reader = RunReader(run, **kind)
    reader.poll()
    run.journal.unlink()
    run.journal.write_bytes(other.journal.read_bytes())
    assert events(reader.poll()) == list(read_journal(other.journal))
    assert reader.state == read_now(other).state
    reader.close()


def test_a_journal_that_was_replaced_by_a_copy_of_itself_gives_nothing_twice(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    reader = RunReader(run, lines=True)
    reader.poll()
    copy = run.journal.read_bytes()
    run.journal.unlink()
    run.journal.write_bytes(copy)
    assert reader.poll() == []
    assert reader.state == read_now(run).state
    write_journal(run, "failed")
    assert [record.line for record in reader.poll()] == lines(run)[len(copy.splitlines()) :]


def test_a_complete_last_line_without_a_newline_counts_once_no_process_writes(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    run.journal.write_bytes(run.journal.read_bytes().rstrip(b"\n"))
    reader = RunReader(run)
    reader.catch_up()
    assert reader.state.state == "running"
    assert reader.refresh() == "succeeded"
    assert read_now(run).state.state == "succeeded"


def test_an_incomplete_last_line_is_left_while_a_process_may_finish_it(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    whole = run.journal.read_bytes()
    run.journal.write_bytes(whole[:-30])
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    reader = RunReader(run)
    assert reader.refresh() == "running"
    run.journal.write_bytes(whole)
    assert reader.refresh() == "succeeded"
    assert reader.state.unreadable == 0
    lock.release()


def test_a_run_that_continues_after_a_torn_last_line_is_folded_from_its_journal(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.journal.write_bytes(run.journal.read_bytes()[:-30])
    reader = RunReader(run)
    assert reader.refresh() == "lost"
    assert reader.state.unreadable == 1
    with run.journal.open("ab") as file:
        file.write(b"\n")
    write_journal(run, "stopped")
    assert reader.refresh() == "stopped"
    assert reader.state == read_now(run).state
    assert reader.state.unreadable == 1


def test_a_running_run_without_a_process_is_lost(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, end=None)
    assert read_now(run).look() == "lost"
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    assert read_now(run).look() == "running", "a supervisor holds it"
    lock.release()
    assert read_now(run).look() == "lost"


def test_a_running_engine_without_a_supervisor_keeps_its_run_alive(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, end=None)
    with engine_of(run) as child:
        write_engine(run, child.pid)
        assert read_now(run).is_live()
        assert read_now(run).look() == "running"
    assert read_now(run).look() == "lost"


def test_a_living_process_without_the_run_s_mark_keeps_nothing_alive(tmp_path: Path) -> None:
    """The folder names a process of this user: a forged run must not look alive, nor be believed in anything else."""
    run, other = a_run(tmp_path), a_run(tmp_path, "other")
    write_journal(run, end=None)
    with engine_of(run, marked=False) as unmarked, engine_of(other) as of_another:
        for child in (unmarked, of_another):
            write_engine(run, child.pid)
            assert not read_now(run).is_live()
            assert read_now(run).look() == "lost"


def test_an_engine_keeps_its_renamed_run_alive_and_not_a_copy_of_it(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, end=None)
    with engine_of(run) as child:
        write_engine(run, child.pid)
        copy = RunDir(Path(shutil.copytree(run.root, tmp_path / "copy", ignore=shutil.ignore_patterns("*.fifo"))))
        moved = RunDir(run.root.rename(tmp_path / "moved"))
        assert read_now(moved).look() == "running"
        assert read_now(copy).look() == "lost"


def write_engine(run: RunDir, pid: int) -> None:
    """Journal a process as the engine of the first attempt."""
    opened = WriterOpened(role=WriterRole.ENGINE, host="h", stage="base", attempt=1, **vars(Identity.of(pid)))
    with run.journal.open("ab") as file:
        file.write(encode_record(opened, writer=f"e{pid}", seq=0, t=1.0, m=1.0))


@pytest.mark.parametrize("changed", [{"start_time": 1}, {"boot_id": "another"}])
def test_another_process_under_an_engine_s_old_pid_keeps_nothing_alive(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = a_run(tmp_path)
    write_journal(run, end=None)
    opened = WriterOpened(
        role=WriterRole.ENGINE, host="h", stage="base", attempt=1, **{**vars(Identity.own()), **changed}
    )
    with run.journal.open("ab") as file:
        file.write(encode_record(opened, writer="eother", seq=0, t=1.0, m=1.0))
    assert not read_now(run).is_live()
    assert read_now(run).look() == "lost"


def test_a_new_run_directory_is_being_launched_and_an_old_one_is_lost(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert read_now(run).look() == "queued"
    facts = run.read_run_json()
    for created in (facts["created_t"] - 3600, None, "yesterday", 0):
        run.run_json.write_text(json.dumps({**facts, "created_t": created}))
        assert read_now(run).look() == "lost"


def test_reading_a_run_writes_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    RunReader(run).refresh()
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before
    assert os.listdir(tmp_path) == [run.id]


def test_a_file_of_a_live_run_that_has_grown_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cockpit.runs import reader as module

    run = a_run(tmp_path)
    write_journal(run, None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    reader = read_now(run)
    assert not [words for words in reader.health(reader.look()).concerns if "nothing limits it" in words]
    console = run.console_log("base", 1)
    console.parent.mkdir(parents=True)
    console.write_bytes(b"x" * 5000)
    monkeypatch.setattr(module, "LARGE_BYTES", run.journal.stat().st_size)
    assert "console.log has 4.88 KiB; nothing limits it" in reader.health(reader.look()).concerns
    lock.release()


@pytest.mark.parametrize("role", [WriterRole.SUPERVISOR, WriterRole.SAMPLER])
def test_a_stopped_process_that_the_files_name_as_supervisor_or_sampler_is_believed_only_if_it_executes_it(
    tmp_path: Path, role: WriterRole
) -> None:
    """The pid in a lock or in a journal may be forged; the command line is read from the kernel."""
    run = a_run(tmp_path)
    module = SUPERVISOR_MODULE if role == WriterRole.SUPERVISOR else SAMPLER_MODULE
    found = {}
    for name, words in {"forged": ("x", "y"), "real": (module, str(run.root)), "other run": (module, "/r")}.items():
        with stopped_process(*words) as identity:
            lock = Lock(run.supervisor_lock)
            assert lock.acquire(vars(identity))
            run.journal.write_bytes(b"")
            write_journal(run, None)
            with run.journal.open("ab") as file:
                opened = WriterOpened(role=WriterRole.SAMPLER, host="h", **vars(identity))
                file.write(encode_record(opened, writer="m1", seq=0, t=1.0, m=1.0))
            reader = read_now(run)
            found[name] = "is stopped (SIGSTOP)" in reader.health(reader.look()).line
            lock.release()
    assert found == {"forged": False, "real": True, "other run": False}
