from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines import emitter
from engines.emitter import PIPE_RECORD_BYTES, EventWriter
from engines.events import (
    MAX_RECORD_BYTES,
    METRIC_KINDS,
    AnyEvent,
    AttemptEnded,
    Event,
    Gap,
    Progress,
    Step,
    Warned,
    WriterOpened,
    decode_record,
    encode_record,
    kind_of,
)
from engines.identity import Identity
from engines.journal import JournalReader, read_journal
from tests.engines.event_strategies import EVENT_TYPES, events, same


def step(number: int, **fields: Any) -> Step:
    values: dict[str, Any] = {
        "stage": "base", "attempt": 1, "epoch": 0.1, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 512,
        "loss_tokens": 500, "step_s": 0.05,
    }  # fmt: skip
    return Step(step=number, **{**values, **fields})


def writer_for(folder: Path, fifo: bool = False) -> EventWriter:
    pipe = folder / "live.fifo"
    if fifo and not pipe.exists():
        os.mkfifo(pipe)
    return EventWriter(folder / "journal.jsonl", pipe, role="engine", stage="base", attempt=1)


def read(folder: Path) -> list[AnyEvent]:
    return list(read_journal(folder / "journal.jsonl"))


def in_a_process(code: str, *argv: str) -> None:
    """Run Python in a process of its own, because what is tried there (limits, forks) is for the whole process."""
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def account(found: list[AnyEvent]) -> tuple[int, int]:
    """Of one writer's records: how many numbers are missing, and how many records its gaps call lost."""
    numbers = [event.seq for event in found]
    assert numbers == sorted(set(numbers)), "in order, none twice"
    return numbers[-1] + 1 - len(numbers), sum(event.lost for event in found if isinstance(event, Gap))


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


def test_writers_of_one_file_number_their_own_records_and_tear_nobody_s(tmp_path: Path) -> None:
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
from engines.emitter import EventWriter
from engines.events import Gap
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
    others = {"bool": True, "list[Device]": list[Any]()}
    for text in texts:
        fields: dict[str, Any] = {}
        for field in kind.__struct_fields__:
            annotation = str(kind.__annotations__.get(field, ""))
            if annotation.startswith("str"):
                fields[field] = text
            elif annotation.startswith("list[str]"):
                fields[field] = [text] * 3
            elif annotation.startswith("dict"):
                fields[field] = {text + str(n): float(n) for n in range(3)}
            elif annotation:
                fields[field] = others.get(annotation, None if "None" in annotation else 1)
        seq = writer.emit(kind(**fields))
        assert seq >= 0
    writer.close()
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(texts) + 1
    assert max(map(len, lines)) <= MAX_RECORD_BYTES
    assert all(isinstance(decode_record(line[:-1]), kind) for line in lines[1:])


def test_what_was_cut_is_said_and_most_of_it_is_kept(tmp_path: Path) -> None:
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


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(events, max_size=10))
def test_whatever_is_emitted_is_read_back(tmp_path: Path, emitted: list[AnyEvent]) -> None:
    (tmp_path / "journal.jsonl").unlink(missing_ok=True)
    writer = writer_for(tmp_path)
    for event in emitted:
        writer.emit(event)
    writer.close()
    assert all(map(same, read(tmp_path)[1:], emitted))


# ---- disks that are full


FULL_DISK = """
import json, os, random, resource, sys
from pathlib import Path
from engines import emitter
from engines.emitter import EventWriter
from engines.events import AttemptEnded, METRIC_KINDS, Phase, Progress, Warned, kind_of
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
emitter.SYNC_INTERVAL_S = 3600.0
draw = random.Random(seed)
journal = folder / "journal.jsonl"
writer = EventWriter(journal, None, role="engine", stage="base", attempt=1)
emitted = [("writer_opened", 0)]
for number in range(1500):
    if draw.random() < 0.02:  # a disk with a few bytes left, or with room again
        soft = resource.RLIM_INFINITY if draw.random() < 0.4 else journal.stat().st_size + draw.randrange(700)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
    if draw.random() < 0.3:
        event = Warned(message="w" * draw.randrange(200))
    elif draw.random() < 0.3:
        event = AttemptEnded(stage="base", attempt=number, reason="error")
    else:
        event = Progress(stage="base", attempt=1, done=number, total=None, unit="x" * draw.randrange(60))
    emitted.append((kind_of(event), writer.emit(event)))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.close()
(folder / "emitted.json").write_text(json.dumps(emitted))
"""


@pytest.mark.parametrize("seed", range(12))
def test_on_a_disk_that_fills_and_empties_every_loss_is_counted_and_no_lifecycle_record_is_lost(
    tmp_path: Path, seed: int
) -> None:
    in_a_process(FULL_DISK, str(tmp_path), str(seed))
    emitted = dict(reversed(pair) for pair in json.loads((tmp_path / "emitted.json").read_text()))
    reader = JournalReader(tmp_path / "journal.jsonl")
    found = [record.event for record in reader.read(1 << 30) + reader.finish()]
    missing, lost = account(found)
    assert lost > 0, "the disk was full at least once"
    assert missing == lost
    present = {event.seq: kind_of(event) for event in found if not isinstance(event, Gap)}
    assert {seq: kind for seq, kind in emitted.items() if kind not in METRIC_KINDS} == {
        seq: kind for seq, kind in present.items() if kind not in METRIC_KINDS
    }
    assert present.items() <= emitted.items()
    assert len(emitted) - len(present) == lost


def test_a_gap_says_how_many_records_and_why(tmp_path: Path) -> None:
    in_a_process(
        """
import resource, sys
from pathlib import Path
from engines import emitter
from engines.emitter import EventWriter
from engines.events import Progress
emitter.SYNC_INTERVAL_S = 3600.0
journal = Path(sys.argv[1])
writer = EventWriter(journal, None, role="engine")
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size, resource.RLIM_INFINITY))
for number in range(30):
    writer.emit(Progress(stage="s", attempt=1, done=number, total=None, unit="u"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert writer.emit(Progress(stage="s", attempt=1, done=30, total=None, unit="u")) == 32
writer.close()
""",
        str(tmp_path / "journal.jsonl"),
    )
    _, gap, progress = read(tmp_path)
    assert same(gap, Gap(lost=30, reason="File too large"))
    assert (gap.seq, progress.seq) == (31, 32)


def test_a_full_disk_that_empties_is_written_to_without_another_event(tmp_path: Path) -> None:
    in_a_process(
        """
import resource, sys, time
from pathlib import Path
from engines import emitter
from engines.emitter import EventWriter
from engines.events import AttemptEnded
emitter.SYNC_INTERVAL_S = 0.02
journal = Path(sys.argv[1])
writer = EventWriter(journal, None, role="engine")
size = journal.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
writer.emit(AttemptEnded(stage="s", attempt=1, reason="error"))
assert b"attempt_ended" not in journal.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
give_up = time.monotonic() + 30
while b"attempt_ended" not in journal.read_bytes():
    assert time.monotonic() < give_up
    time.sleep(0.01)
""",
        str(tmp_path / "journal.jsonl"),
    )
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, AttemptEnded]


@pytest.mark.parametrize("short_by", [1, 2, 60, 150])
def test_a_write_that_comes_short_is_one_record_in_the_end_and_never_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_by: int
) -> None:
    writer = writer_for(tmp_path)
    real, cuts = os.write, [short_by]

    def short(fd: int, data: bytes) -> int:
        return real(fd, data[: -cuts.pop()]) if cuts and data.startswith(b'{"v"') else real(fd, data)

    monkeypatch.setattr(os, "write", short)
    emitted = [AttemptEnded(stage="s", attempt=n, reason="error", detail="d" * 80) for n in range(3)]
    for event in emitted:
        writer.emit(event)
    writer.close()
    found = read(tmp_path)[1:]
    assert all(map(same, found, emitted))
    assert [event.seq for event in found] == [1, 2, 3]


def test_the_last_record_s_missing_line_end_is_written_when_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter, "SYNC_INTERVAL_S", 3600.0)
    writer, real = writer_for(tmp_path), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:-1]))
    writer.emit(Warned(message="the last one"))
    monkeypatch.setattr(os, "write", real)
    writer.retry_waiting()
    assert (tmp_path / "journal.jsonl").read_bytes().endswith(b"}\n")
    writer.close()


def test_what_waits_for_a_disk_is_bounded_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitter, "SYNC_INTERVAL_S", 3600.0)
    monkeypatch.setattr(emitter, "RING_RECORDS", 50)
    monkeypatch.setattr(emitter, "RING_BYTES", 40_000)
    writer, real, full = writer_for(tmp_path), os.write, True

    def write(fd: int, data: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    for number in range(200):
        writer.emit(AttemptEnded(stage="s", attempt=number, reason="error"))
        writer.emit(step(number))
        assert len(writer._waiting) <= 50
    assert writer._waiting_bytes == sum(map(len, writer._waiting))
    writer.emit(AttemptEnded(stage="s", attempt=200, reason="error", detail="d" * 39_000))
    assert writer._waiting_bytes <= 40_000
    full = False
    writer.close()
    found = read(tmp_path)
    missing, lost = account(found)
    assert missing == lost
    kept = [event.attempt for event in found if isinstance(event, AttemptEnded)]
    assert kept == list(range(201))[-len(kept) :]


def test_a_journal_that_cannot_even_be_opened_stops_nothing(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "later" / "journal.jsonl", None, role="engine")
    for number in range(5):
        writer.emit(step(number))
    (tmp_path / "later").mkdir()
    writer.close()
    found = list(read_journal(tmp_path / "later" / "journal.jsonl"))
    assert [type(event) for event in found] == [WriterOpened, Gap]
    assert account(found) == (5, 5)


def test_a_new_writer_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    first = encode_record(Gap(lost=1), writer="e1", seq=0, t=1.0, m=1.0)
    (tmp_path / "journal.jsonl").write_bytes(first + b'{"v":1,"w":"e1","seq":1,"t":1.0,"m":1.0,"k":"ste')
    writer = writer_for(tmp_path)
    writer.close()
    reader = JournalReader(tmp_path / "journal.jsonl")
    assert [record.event.w for record in reader.read()] == ["e1", writer.writer]
    assert reader.bad == 1
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(first), "nobody repairs a journal"


# ---- journals that change under a writer


def test_a_journal_that_is_deleted_or_replaced_is_written_on_under_its_name(tmp_path: Path) -> None:
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


def test_a_deleted_journal_is_noticed_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter, "SYNC_INTERVAL_S", 0.02)
    writer = writer_for(tmp_path)
    (tmp_path / "journal.jsonl").unlink()
    give_up_s = time.monotonic() + 60
    while not (tmp_path / "journal.jsonl").exists() or len(read(tmp_path)) < 2:
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    writer.close()
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, Warned]


def test_a_journal_that_is_cut_short_is_told(tmp_path: Path) -> None:
    writer = writer_for(tmp_path)
    writer.emit(step(1))
    writer.notice_replacement()
    os.truncate(tmp_path / "journal.jsonl", 5)
    writer.notice_replacement()
    writer.notice_replacement()
    writer.close()
    (warned,) = read(tmp_path)
    assert "cut short" in warned.message


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
    for number in range(2000):  # nobody reads: the pipe fills, and what does not fit is dropped
        writer.emit(step(number))
    os.close(pipe)
    for number in range(10):  # nobody is there at all
        writer.emit(step(number))
    writer.close()
    assert len(read(tmp_path)) == 2013


@pytest.mark.parametrize("there", ["nothing", "file", "folder", "link to nowhere"])
def test_without_a_pipe_events_are_recorded_all_the_same(tmp_path: Path, there: str) -> None:
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
