from __future__ import annotations

from pathlib import Path

from cockpit.runs.state import fold
from cockpit.tui.screens.sources import LiveSource
from tests.cockpit.runs.journaled_runs import a_run, write_journal
from tests.tui import journals


def drained(source: LiveSource) -> LiveSource:
    source.poll()
    while source.catching_up or source.poll():
        source.poll()
    return source


def test_a_live_source_ends_with_the_fold_of_the_journal(tmp_path: Path) -> None:
    journal = journals.failed()
    source = drained(LiveSource(journal.write(tmp_path / "run")))
    assert source.state == fold(journal.events)
    assert source.run_state == "failed"
    assert not source.live


def test_a_run_whose_journal_says_running_without_a_process_is_lost(tmp_path: Path) -> None:
    source = drained(LiveSource(journals.live(30).write(tmp_path / "run")))
    assert source.state.state == "running"
    assert source.run_state == "lost"


def test_unreadable_records_are_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    journal = journals.live(30)
    run = journal.write(tmp_path / "run")
    with (run / "journal.jsonl").open("ab") as file:
        file.write(b'{"v":1,"w":"x","seq":torn\n\0\0\0\n')
    source = drained(LiveSource(run))
    assert source.state.unreadable == 1
    assert source.state == fold(journal.events)


def test_a_replaced_journal_is_read_from_its_start(tmp_path: Path) -> None:
    run = journals.live(60).write(tmp_path / "run")
    source = drained(LiveSource(run))
    (run / "journal.jsonl").unlink()
    other = journals.live(20)
    other.write(run)
    assert drained(source).state == fold(other.events)


def test_a_source_says_how_much_it_has_read_and_judges_no_process_before_the_end(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None, steps=12_000)
    source, shares = LiveSource(run.root), []
    while source.reading is not None:
        assert source.run_state != "lost"
        shares.append(source.reading)
        source.poll()
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert source.run_state == "lost"
