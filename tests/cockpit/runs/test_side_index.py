from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.columns.column import MappedColumn
from cockpit.runs import index_store, reader
from cockpit.runs.index_store import index_folder, index_path
from cockpit.runs.reader import RunReader, read_now
from cockpit.runs.state import RunState, fold
from engines.events.kinds import AnyEvent
from engines.events.records import encode_record
from engines.events.writers import Warned
from engines.journal import JournalReader, read_journal
from engines.run_dir.paths import RunDir
from tests.cockpit.runs.journaled_runs import a_run, write_journal
from tests.cockpit.runs.test_state import JOURNALS, views
from tests.engines.event_strategies import events as any_events


@pytest.fixture(autouse=True)
def small_indexes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache folder of the test's own, and an index after every byte."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "INDEX_AFTER_BYTES", 1)
    return


def lines_of(events: list[AnyEvent]) -> list[bytes]:
    """The journal lines of events, each with its writer, number and time."""
    return [encode_record(e, writer=e.w, seq=e.seq, t=e.t, m=e.m) for e in events]


def numbered(events: list[AnyEvent], rng: random.Random) -> list[bytes]:
    """Lines of events from three writers, with holes, late records and clocks that go back."""
    next_of = {"s1": 0, "e2": 0, "m3": 0}
    lines = []
    for event in events:
        writer = rng.choice(sorted(next_of))
        lines.append(encode_record(event, writer=writer, seq=next_of[writer], t=1e9 + rng.random() * 100, m=1.0))
        next_of[writer] += rng.choice([1, 1, 1, 1, 3])
    return lines


def shown(state: RunState) -> object:
    return repr(views(state)), state.digest(), state.missing, state.unreadable, state.unknown, repr(state.samples)


def opened_bytes(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> tuple[RunState, int]:
    """The state of a new reader, and how many bytes of the journal its records had."""
    read: list[int] = []
    real = JournalReader._take

    def counted(self: JournalReader, chunk: bytes, records: list[Any]) -> None:
        read.append(len(chunk))
        real(self, chunk, records)

    monkeypatch.setattr(JournalReader, "_take", counted)
    state = read_now(run).state
    monkeypatch.setattr(JournalReader, "_take", real)
    return state, sum(read)


@settings(max_examples=60)
@given(st.data())
def test_an_index_and_the_rest_of_the_journal_fold_to_what_the_whole_journal_folds_to(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))
    if data.draw(st.booleans()):
        lines = lines_of(JOURNALS[data.draw(st.sampled_from(sorted(JOURNALS)))])
    else:
        lines = numbered(data.draw(st.lists(any_events, max_size=40)), rng)
    for _ in range(data.draw(st.integers(0, 3))):
        lines.insert(
            rng.randrange(len(lines) + 1),
            rng.choice([b"torn {\n", b"\0\0\0\n", b'{"v":1,"w":"x","seq":0,"k":"new"}\n']),
        )
    whole = b"".join(lines)
    cuts = sorted(rng.randrange(len(whole) + 1) for _ in range(3)) if whole else []
    with tempfile.TemporaryDirectory() as folder:
        run = a_run(Path(folder))
        for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            with run.journal.open("ab") as journal:
                journal.write(whole[start:stop])
            RunReader(run, indexed=True).catch_up()
        indexed, plain = RunReader(run, indexed=True), RunReader(run)
        for each in (indexed, plain):
            each.catch_up()
            each.finish()
        assert shown(indexed.state) == shown(plain.state)


def test_a_second_reader_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path)
    write_journal(run, None, steps=500)
    whole, read = opened_bytes(run, monkeypatch)
    assert read == run.journal.stat().st_size
    again, read = opened_bytes(run, monkeypatch)
    assert read == 0
    assert shown(again) == shown(whole)
    size = run.journal.stat().st_size
    write_journal(run, "failed")
    later, read = opened_bytes(run, monkeypatch)
    assert read == run.journal.stat().st_size - size
    assert later == fold(read_journal(run.journal))


def test_the_journals_of_other_ranks_are_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    run.journal_parts.mkdir(exist_ok=True)
    part = run.journal_parts / "e9.jsonl"
    part.write_bytes(encode_record(Warned(message="from rank 1"), writer="e9", seq=0, t=2e9, m=1.0))
    whole, _ = opened_bytes(run, monkeypatch)
    again, read = opened_bytes(run, monkeypatch)
    assert (read, again) == (0, whole)
    part.write_bytes(encode_record(Warned(message="another text!"), writer="e9", seq=0, t=2e9, m=1.0))
    assert "another" in read_now(run).state.log()[-1].text


def damages() -> dict[str, Any]:
    def cut(data: bytes) -> bytes:
        return data[: len(data) // 2]

    def flip(data: bytes) -> bytes:
        return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]

    return {
        "truncated": cut,
        "one bit differs": flip,
        "empty": lambda _data: b"",
        "something else": lambda _data: b"\x93\x01" * 999,
        "of another version": lambda data: data.replace(b"cockpit side index\n", b"cockpit side inde2\n"),
    }


@pytest.mark.parametrize("damage", sorted(damages()))
def test_a_damaged_index_is_not_used_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None, steps=300)
    read_now(run)
    path = index_path(run)
    assert path is not None
    path.write_bytes(damages()[damage](path.read_bytes()))
    state, read = opened_bytes(run, monkeypatch)
    assert read == run.journal.stat().st_size
    assert state == fold(read_journal(run.journal))
    assert opened_bytes(run, monkeypatch)[1] == 0


def test_an_index_never_decides_against_the_journal(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None, steps=300)
    read_now(run)
    whole = run.journal.read_bytes()
    changes = {
        "another last record": whole[:-200] + whole[-200:].replace(b'"step":300', b'"step":299'),
        "shorter": whole[: len(whole) // 2],
        "another beginning, and longer": whole.replace(b'"boot_id":"', b'"boot_id":"x', 1) + whole[-300:],
        "changed in place": whole.replace(b'"loss":-147', b'"loss":-999'),
        "empty": b"",
    }
    for what, content in changes.items():
        run.journal.write_bytes(whole)
        assert read_now(run).state == fold(read_journal(run.journal))
        before = run.journal.stat()
        run.journal.write_bytes(content)
        os.utime(run.journal, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert read_now(run).state == fold(read_journal(run.journal)), what


def test_an_index_of_another_run_is_not_used_when_the_file_system_gives_its_inode_again(tmp_path: Path) -> None:
    run, other = a_run(tmp_path, "one"), a_run(tmp_path, "two")
    write_journal(run, None, steps=300)
    write_journal(other, "failed", steps=20)
    read_now(run)
    of_run, of_other = index_path(run), index_path(other)
    assert of_run is not None
    assert of_other is not None
    of_other.write_bytes(of_run.read_bytes())
    assert read_now(other).state == fold(read_journal(other.journal))


def test_a_record_that_only_the_live_stream_brought_is_in_no_index(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    ahead = RunReader(run, indexed=True)
    ahead._begun = True
    ahead.poll()
    path = index_path(run)
    assert path is not None
    path.unlink()
    writer = ahead.state.writers[0]
    ahead._stored_bytes = -(1 << 20)
    ahead.state.apply(Warned(w=writer.name, seq=writer.numbers.next, message="only in the stream"))
    ahead.poll()
    assert not path.exists()


def test_looking_at_a_run_writes_nothing_into_it_and_the_index_is_private(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, steps=300)
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} | {run.root: run.root.stat().st_mtime_ns}
    read_now(run)
    after = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} | {run.root: run.root.stat().st_mtime_ns}
    assert before == after
    path, folder = index_path(run), index_folder()
    assert path is not None
    assert folder is not None
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)


def test_without_a_private_folder_a_run_is_read_without_an_index(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run)
    folder = index_folder()
    assert folder is not None
    folder.chmod(0o755)
    assert read_now(run).state == fold(read_journal(run.journal))
    assert not list(folder.iterdir())


def test_all_indexes_together_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [a_run(tmp_path, f"r{number}") for number in range(4)]
    for run in runs:
        write_journal(run, steps=300)
    read_now(runs[0])
    first = index_path(runs[0])
    assert first is not None
    monkeypatch.setattr(index_store, "MOST_BYTES", first.stat().st_size * 5 // 2)
    for run in runs[1:]:
        read_now(run)
    left = [path for run in runs if (path := index_path(run)) is not None and path.exists()]
    assert left == [index_path(runs[2]), index_path(runs[3])]


def test_a_screen_keeps_the_columns_in_the_index_once_it_has_stored_one(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_journal(run, None, steps=300)
    live = RunReader(run, live=True, indexed=True)
    live.catch_up()
    tracks = [track for writer in live.state.writers for track in writer.tracks.values()]
    assert {type(column) for track in tracks for column in (track.steps, *track.columns.values())} == {MappedColumn}
    assert not live.behind
    live.forget_pages()
    assert live.state == fold(read_journal(run.journal))
    write_journal(run, "failed", steps=50)
    live.catch_up()
    assert live.state == fold(read_journal(run.journal))
    live.close()
