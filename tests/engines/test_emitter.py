from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import emitter, words
from engines.emitter import PIPE_RECORD_BYTES
from engines.events.attempts import Progress
from engines.events.event import Event, kind_of
from engines.events.kinds import METRIC_KINDS, AnyEvent
from engines.events.records import MAX_RECORD_BYTES, decode_record
from engines.events.steps import Step
from engines.events.writers import Gap, Warned, WriterOpened
from engines.identity import Identity
from engines.journal import JournalReader
from tests.engines.event_strategies import EVENT_TYPES, events, same
from tests.engines.writers import in_a_process, read, step, writer_for
from tests.patience import PATIENCE_S

# ---- writing


def test_the_first_record_says_which_process_writes(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    writer.close()
    (opened,) = read(tmp_path)
    assert isinstance(opened, WriterOpened)
    assert (opened.role, opened.stage, opened.attempt, opened.seq) == ("engine", "base", 1, 0)
    assert Identity(opened.pid, opened.start_time, opened.boot_id) == Identity.own()


def test_a_record_is_in_the_file_when_emit_returns(tmp_path: Path) -> None:
    writer, reader = writer_for(tmp_path), JournalReader(tmp_path / "journal.jsonl")
    reader.read()
    for number in range(50):
        assert writer.emit(step(number)) == number + 1
        assert [record.event.seq for record in reader.read()] == [number + 1]
    writer.close()


def test_writers_of_one_file_number_their_own_records_and_tear_no_others(tmp_path: Path) -> None:
    writers = [writer_for(tmp_path) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda w=writer: [w.emit(step(n, metrics={"a": n})) for n in range(500)])
        for writer in writers
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.close()
    found = read(tmp_path)
    for writer in writers:
        assert [event.seq for event in found if event.w == writer.writer] == list(range(1001))


def test_a_writer_is_not_used_by_a_fork(tmp_path: Path) -> None:
    in_a_process(
        """
import os, sys
from pathlib import Path
from engines import words
from engines.emitter import EventWriter
from engines.events.writers import Gap
writer = EventWriter(Path(sys.argv[1]), None, role="engine")
pid = os.fork()
if pid == 0:
    try:
        writer.emit(Gap(lost=1))
    except RuntimeError:
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
writer.emit(Gap(lost=2))
writer.close()
""",
        str(tmp_path / "journal.jsonl"),
    )
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, Gap]


def test_an_event_that_cannot_be_encoded_uses_up_no_number(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    with pytest.raises(TypeError):
        writer.emit(step(1, metrics={"a": object()}))
    assert writer.emit(step(2)) == 1
    writer.close()


# ---- records that are too long


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
def test_a_record_above_the_limit_is_cut_and_never_split(tmp_path: Path, kind: type[Event]) -> None:
    texts = ["x" * 200_000, "é" * 100_000, "\0" * 30_000, "💥" * 50_000, "\x1b[2J" * 40_000, '"\\' * 60_000]
    writer = writer_for(tmp_path)
    others = {"bool": True}
    for text in texts:
        fields: dict[str, Any] = {}
        for field in kind.__struct_fields__:
            annotation = str(kind.__annotations__.get(field, ""))
            if annotation.startswith("str"):
                fields[field] = text
            elif hasattr(words, annotation):
                fields[field] = getattr(words, annotation)(text)
            elif annotation.startswith("list[str]"):
                fields[field] = [text] * 3
            elif annotation.startswith("list["):
                fields[field] = list[Any]()
            elif annotation.startswith("dict"):
                fields[field] = {text + str(n): n if "int" in annotation else float(n) for n in range(3)}
            elif annotation:
                fields[field] = others.get(annotation, None if "None" in annotation else 1)
        seq = writer.emit(kind(**fields))
        assert seq >= 0
    writer.close()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(texts) + 1
    assert max(map(len, lines)) <= MAX_RECORD_BYTES
    assert all(isinstance(decode_record(line[:-1]), kind) for line in lines[1:])


def test_a_cut_text_is_marked_and_most_of_it_is_kept(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    writer.emit(Warned(message="a" * 100_000))
    writer.emit(Warned(message="\0" * 20_000))
    writer.close()
    _, long, dense = read(tmp_path)
    assert long.message.endswith(" [cut]")
    assert len(long.message) > 60_000
    assert len(dense.message) > 4_000


def test_thousands_of_metrics_make_a_record_that_still_fits(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    writer.emit(step(1, metrics={f"metric-{n}": 1.0 for n in range(9000)}))
    writer.close()
    assert isinstance(read(tmp_path)[-1], Step)


@settings(max_examples=80)
@given(st.lists(events, max_size=10))
def test_every_emitted_event_is_read_back(tmp_path: Path, emitted: list[AnyEvent]) -> None:
    (tmp_path / "journal.jsonl").unlink(missing_ok=True)
    writer = writer_for(tmp_path)
    for event in emitted:
        writer.emit(event)
    writer.close()
    assert all(map(same, read(tmp_path)[1:], emitted))


# ---- journals that change under a writer


def test_a_deleted_or_replaced_journal_is_continued_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    writer = writer_for(tmp_path)
    writer.emit(step(1))
    reader = JournalReader(path)
    assert len(reader.read()) == 2
    path.unlink()
    writer.notice_replacement()
    writer.emit(step(2))
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, Warned, Step]
    path.rename(tmp_path / "elsewhere")
    path.write_bytes(b"somebody's notes")
    writer.notice_replacement()
    writer.emit(step(3))
    writer.close()
    assert path.read_bytes().startswith(b"somebody's notes\n")
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, Warned, Step]
    assert [record.event.seq for record in reader.read()] == [5, 6, 7]
    assert reader.restarted == 1


def test_a_deleted_journal_is_noticed_without_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter, "SYNC_INTERVAL_S", 0.02)
    writer = writer_for(tmp_path)
    (tmp_path / "journal.jsonl").unlink()
    give_up_s = time.monotonic() + PATIENCE_S
    while not (tmp_path / "journal.jsonl").exists() or len(read(tmp_path)) < 2:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    writer.close()
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, Warned]


def test_a_truncated_journal_gives_a_warning(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    writer.emit(step(1))
    writer.notice_replacement()
    os.truncate(tmp_path / "journal.jsonl", 5)
    writer.notice_replacement()
    writer.notice_replacement()
    writer.close()
    (warned,) = read(tmp_path)
    assert "truncated" in warned.message


def test_a_run_directory_that_is_moved_takes_its_journal_along(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    writer = writer_for(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    writer.notice_replacement()
    writer.emit(step(1))
    writer.close()
    assert [type(event) for event in read(tmp_path / "moved")] == [WriterOpened, Step]


# ---- the live pipe


def test_the_pipe_gets_a_copy_of_every_record_that_fits_and_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "live.fifo")
    pipe = os.open(tmp_path / "live.fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = writer_for(tmp_path)
    writer.emit(Warned(message="m" * 2 * PIPE_RECORD_BYTES))
    writer.emit(step(1))
    live = [decode_record(line) for line in os.read(pipe, 65_536).splitlines()]
    assert [type(event) for event in live] == [WriterOpened, Step]
    for number in range(2000):  # no reader: the pipe fills, and further records are dropped
        writer.emit(step(number))
    os.close(pipe)
    for number in range(10):  # no reader at all
        writer.emit(step(number))
    writer.close()
    assert len(read(tmp_path)) == 2013


@pytest.mark.parametrize("there", ["nothing", "file", "folder", "link to nowhere"])
def test_events_are_recorded_without_a_pipe(tmp_path: Path, there: str) -> None:
    pipe = tmp_path / "live.fifo"
    if there == "file":
        pipe.write_bytes(b"kept")
    elif there == "folder":
        pipe.mkdir()
    elif there == "link to nowhere":
        pipe.symlink_to(tmp_path / "nowhere")
    writer = writer_for(tmp_path)
    writer.emit(step(1))
    writer.close()
    assert len(read(tmp_path)) == 2
    if there == "file":
        assert pipe.read_bytes() == b"kept"


def test_kinds_that_may_be_dropped_are_kinds_that_exist() -> None:
    assert {kind_of(step(1)), kind_of(Progress(stage="s", attempt=1, done=1, total=1, unit="u"))} <= METRIC_KINDS
    kinds = {str(kind.__struct_config__.tag) for kind in EVENT_TYPES}
    assert kinds >= METRIC_KINDS | emitter.DURABLE_KINDS
    assert not METRIC_KINDS & emitter.DURABLE_KINDS
