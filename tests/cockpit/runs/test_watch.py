from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit.runs.reader import RunReader, read_now
from cockpit.runs.state import RunState
from cockpit.runs.summaries import RunSummary, exit_facts
from cockpit.runs.watch import FULL_POLL_EVERY, KEPT_ENDED, RunWatch
from engines.files import write_durably
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from tests.cockpit.runs.journaled_runs import a_run, write_journal


def listed(root: Path) -> dict[str, RunSummary]:
    """The runs of a folder, by id, from a new watch."""
    return {summary.id: summary for summary in RunWatch(root).poll()}


def lines(run: RunDir) -> int:
    return len(run.journal.read_bytes().splitlines())


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The writer of every record that is folded from now on."""
    read: list[str] = []
    apply = RunState.apply
    monkeypatch.setattr(RunState, "apply", lambda state, event: (read.append(event.w), apply(state, event))[1])
    return read


def test_runs_are_listed_newest_first_and_what_cannot_be_read_is_a_row_that_says_why(tmp_path: Path) -> None:
    made = [a_run(tmp_path, name) for name in ("a", "b", "c")]
    made[1].run_json.write_text("damaged")
    os.utime(made[1].run_json, (1, 1))
    found = RunWatch(tmp_path).poll()
    assert [summary.recipe for summary in found] == ["c", "a", ""]
    assert found[2].state == "unreadable"
    assert "run.json" in found[2].reason


def test_a_run_that_ended_is_summarized_from_its_journal(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, "failed")
    summary = listed(tmp_path)[run.id]
    assert (summary.id, summary.recipe, summary.state, summary.reason) == (run.id, "atlas", "failed", "because")
    assert (summary.stage, summary.kind, summary.step, summary.total_steps, summary.loss) == ("base", "fake", 2, 4, 1.0)
    assert summary.started_t is not None
    assert summary.ended_t is not None
    assert summary.started_t <= summary.ended_t


def test_exit_json_is_used_while_the_journal_has_the_recorded_size(tmp_path: Path, folded: list[str]) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    from_journal = listed(tmp_path)[run.id]
    write_durably(run.exit_json, json.dumps(exit_facts(run, read_now(run).state)).encode())
    folded.clear()
    assert listed(tmp_path)[run.id] == from_journal
    moved = RunDir(run.root.rename(tmp_path / "moved"))
    assert listed(tmp_path)["moved"].path == str(tmp_path / "moved"), "a moved run is where it is"
    assert folded == [], "no journal was read"
    write_journal(moved, "stopped")
    assert listed(tmp_path)["moved"].state == "stopped", "a journal that grew is read"
    assert len(folded) == lines(moved)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "{}", '{"journal_bytes": "x"}', '{"summary": {"nonsense": 1}}']
)
def test_an_invalid_exit_json_is_ignored(tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    size = run.journal.stat().st_size
    run.exit_json.write_text(
        content.replace("{", f'{{"journal_bytes": {size}, ', 1) if "summary" in content else content
    )
    assert listed(tmp_path)[run.id].state == "succeeded"


def test_a_list_is_cheap_when_nothing_changed_and_right_when_something_did(tmp_path: Path, folded: list[str]) -> None:
    ended, running = a_run(tmp_path, "a"), a_run(tmp_path, "b")
    write_journal(ended)
    write_journal(running, end=None)
    watch = RunWatch(tmp_path)
    first = watch.poll()
    assert len(folded) == lines(ended) + lines(running)
    watch.look_again()
    assert watch.poll() == first
    assert len(folded) == lines(ended) + lines(running), "neither journal grew"
    write_journal(running, "stopped")
    assert {summary.id: summary.state for summary in watch.poll()} == {ended.id: "succeeded", running.id: "stopped"}
    assert len(folded) == lines(ended) + lines(running), "what is new, and no more"


def test_the_list_and_the_preview_share_a_reader(tmp_path: Path, folded: list[str]) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    watch = RunWatch(tmp_path)
    watch.poll()
    for end in (None, "failed", None):
        with watch.reading(run.id) as reader:
            assert reader.state == read_now(run).state
        write_journal(run, end)
        watch.look_again()
        watch.poll()
    folded.clear()
    with watch.reading(run.id) as reader:
        assert reader.state.current_stage is not None
    assert folded == [], "the poll before has read it all"


def test_a_torn_journal_of_a_lost_run_is_not_read_again_with_every_poll(tmp_path: Path, folded: list[str]) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.journal.write_bytes(run.journal.read_bytes()[:-30])
    watch = RunWatch(tmp_path)
    for _ in range(3):
        assert [summary.state for summary in watch.poll()] == ["lost"]
    assert len(folded) == lines(run) - 1


def test_a_run_is_not_added_to_while_it_is_drawn(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    watch = RunWatch(tmp_path)
    watch.poll()
    with watch.reading(run.id) as reader:
        write_journal(run, "failed")
        poll = threading.Thread(target=watch.poll)
        poll.start()
        poll.join(0.2)
        assert poll.is_alive()
        assert reader.state.state == "running"
    poll.join()
    assert reader.state.state == "failed"


def test_a_run_that_ended_is_checked_at_intervals_as_it_may_be_resumed_elsewhere(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, "failed")
    watch = RunWatch(tmp_path)
    watch.poll()
    write_journal(run, "succeeded")
    states = [watch.poll()[0].state for _ in range(FULL_POLL_EVERY)]
    assert states == ["failed"] * (FULL_POLL_EVERY - 1) + ["succeeded"]


def _polled(watch: RunWatch, ids: list[str]) -> None:
    watch.poll()


def _looked_at(watch: RunWatch, ids: list[str]) -> None:
    for run_id in ids:
        with watch.reading(run_id):
            pass


@pytest.mark.parametrize("use", [_polled, _looked_at])
def test_few_readers_of_ended_runs_are_kept_and_none_of_deleted_runs(
    tmp_path: Path, use: Callable[[RunWatch, list[str]], None]
) -> None:
    runs = [a_run(tmp_path, f"r{number}") for number in range(KEPT_ENDED + 3)]
    for run in runs:
        write_journal(run, "failed")
    watch = RunWatch(tmp_path)
    use(watch, [run.id for run in runs])
    assert 0 < len(watch._readers) <= KEPT_ENDED
    for run in runs:
        run.root.rename(tmp_path / f".{run.id}")
    assert watch.poll() == []
    assert watch._readers == {}


def test_a_run_of_a_newer_cockpit_is_listed(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    run.run_json.write_text(json.dumps({**run.read_run_json(), "format": 99, "colour": "red"}))
    assert listed(tmp_path)[run.id].state == "succeeded"


def test_damage_in_a_journal_does_not_hide_its_run(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    data = run.journal.read_bytes()
    run.journal.write_bytes(b"\0" * 100 + data[:200] + b"\xff{rubbish\n" + data[200:] + b'{"v":1,"w":"e')
    (tmp_path / "none").mkdir()
    assert [summary.state for summary in RunWatch(tmp_path).poll()] in (["succeeded"], ["lost"])


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_a_damaged_run_json_does_not_hide_its_run_or_others(tmp_path: Path, content: str) -> None:
    run, other = a_run(tmp_path, "one"), a_run(tmp_path, "two")
    for each in (run, other):
        write_journal(each)
    run.run_json.write_text(content)
    run.exit_json.write_text(content)
    assert [found.state for found in RunWatch(tmp_path).poll()] == ["succeeded", "succeeded"]
    run.journal.unlink()
    found = {summary.id: summary for summary in RunWatch(tmp_path).poll()}
    assert found[other.id].state == "succeeded"
    assert found[run.id].state == "unreadable"
    assert "run.json" in found[run.id].reason


def test_other_folders_are_not_listed_and_stay_unchanged(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert listed(tmp_path) == {}
    assert listed(tmp_path / "nowhere") == {}
    assert os.listdir(tmp_path) == ["none"]


def test_a_run_with_a_supervisor_is_running(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    try:
        summary = listed(tmp_path)[run.id]
        assert (summary.state, summary.step) == ("running", 2)
    finally:
        lock.release()


def test_a_journal_that_was_replaced_is_summarized_again(tmp_path: Path) -> None:
    run, other = a_run(tmp_path / "runs"), a_run(tmp_path / "others")
    write_journal(run, None)
    write_journal(other, "failed")
    watch = RunWatch(tmp_path / "runs")
    assert watch.poll()[0].step == 2
    os.truncate(run.journal, 0)
    run.journal.write_bytes(other.journal.read_bytes())
    assert watch.poll()[0].state == "failed"
    assert RunReader(run).refresh() == "failed"


def test_a_long_journal_is_read_in_parts_and_its_row_says_how_much_and_no_state(
    tmp_path: Path, folded: list[str]
) -> None:
    long, short = a_run(tmp_path, "long"), a_run(tmp_path, "short")
    write_journal(long, "failed", steps=12_000)
    write_journal(short, "failed")
    lock = Lock(long.supervisor_lock)
    watch = RunWatch(tmp_path)
    shares: list[float] = []
    row = None
    while row is None or row.reading is not None:
        found = {summary.id: summary for summary in watch.poll(budget_s=0.0)}
        assert (found[short.id].state, found[short.id].reading) == ("failed", None), "another run is not affected"
        row = found[long.id]
        if row.reading is not None:
            assert (row.state, row.step, row.loss, row.stage, row.progress) == ("reading", None, None, None, None)
            assert row.recipe == "long"
            shares.append(row.reading)
    assert len(shares) > 2
    assert all(0 < share <= 1 for share in shares)
    assert shares == sorted(shares)
    assert row.state == "failed"
    assert len(folded) == lines(long) + lines(short), "no part was read twice"
    again = RunWatch(tmp_path)
    assert lock.acquire({})
    assert {summary.id: summary.state for summary in again.poll(budget_s=0.0)}[long.id] == "running", "by its lock"
    assert again.poll()[0].reading is None, "without a budget everything is read"
    lock.release()


def test_a_list_that_ends_before_a_long_journal_s_end_is_continued_by_the_next_one(
    tmp_path: Path, folded: list[str]
) -> None:
    run = a_run(tmp_path, "long")
    write_journal(run, "failed", steps=12_000)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    shares: list[float | None] = []
    while not shares or shares[-1] is not None:
        watch = RunWatch(tmp_path)
        (row,) = watch.poll(budget_s=0.0)
        watch.keep_progress()
        shares.append(row.reading)
    assert len(shares) > 2
    assert len(folded) < 2 * lines(run), "no list begins at the journal's beginning again"
    (whole,) = RunWatch(tmp_path).poll()
    (alone,) = [stage for stage in read_now(run).state.stages if stage.last_step is not None]
    assert (whole.step, whole.loss) == (row.step, row.loss)
    assert alone.last_step is not None
    assert alone.last_step.step == row.step
    lock.release()


def test_a_lost_run_is_not_opened_again_while_nothing_changes_and_is_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.journal.write_bytes(run.journal.read_bytes()[:-30])
    watch = RunWatch(tmp_path)
    watch.poll()
    polled: list[str] = []
    real = RunReader.poll
    monkeypatch.setattr(RunReader, "poll", lambda self, *args: (polled.append(self.run.id), real(self, *args))[1])
    for _ in range(2 * FULL_POLL_EVERY):
        with watch.reading(run.id):
            pass
        polled.clear()
        assert watch.poll()[0].state == "lost"
        assert polled == []
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    assert watch.poll()[0].state == "running"
    lock.release()
    write_journal(run, "stopped")
    assert watch.poll()[0].state == "stopped"


def test_readers_of_lost_runs_are_dropped_like_those_of_ended_ones(tmp_path: Path) -> None:
    for number in range(KEPT_ENDED + 3):
        write_journal(a_run(tmp_path, f"r{number}"), None)
    watch = RunWatch(tmp_path)
    watch.poll()
    watch.poll()
    assert len(watch._readers) <= KEPT_ENDED
