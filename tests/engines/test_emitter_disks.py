from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from engines import emitter
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded
from engines.events.event import kind_of
from engines.events.kinds import METRIC_KINDS
from engines.events.records import encode_record
from engines.events.writers import Gap, Warned, WriterOpened
from engines.journal import JournalReader, read_journal
from engines.words import EndReason, WriterRole
from tests.engines.event_strategies import same
from tests.engines.writers import account, in_a_process, read, step, writer_for

# ---- disks that are full


FULL_DISK = """
import json, os, random, resource, sys
from pathlib import Path
from engines import emitter
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, Phase, Progress
from engines.events.event import kind_of
from engines.events.kinds import METRIC_KINDS
from engines.events.writers import Warned
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
emitter.SYNC_INTERVAL_S = 3600.0
draw = random.Random(seed)
journal = folder / "journal.jsonl"
writer = EventWriter(journal, None, role="engine", stage="base", attempt=1)
emitted = [("writer_opened", 0)]
for number in range(1500):
    if draw.random() < 0.02:  # a disk with a few bytes left, or with free space again
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
from engines.events.attempts import Progress
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
from engines.events.attempts import AttemptEnded
emitter.SYNC_INTERVAL_S = 0.02
journal = Path(sys.argv[1])
writer = EventWriter(journal, None, role="engine")
size = journal.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
writer.emit(AttemptEnded(stage="s", attempt=1, reason="error"))
assert b"attempt_ended" not in journal.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
give_up = time.monotonic() + 300
while b"attempt_ended" not in journal.read_bytes():
    assert time.monotonic() < give_up
    time.sleep(0.01)
""",
        str(tmp_path / "journal.jsonl"),
    )
    assert [type(event) for event in read(tmp_path)] == [WriterOpened, AttemptEnded]


@pytest.mark.parametrize("short_by", [1, 2, 60, 150])
def test_a_short_write_ends_as_one_record_and_never_as_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_by: int
) -> None:
    writer = writer_for(tmp_path)
    real, cuts = os.write, [short_by]

    def short(fd: int, data: bytes) -> int:
        return real(fd, data[: -cuts.pop()]) if cuts and data.startswith(b'{"v"') else real(fd, data)

    monkeypatch.setattr(os, "write", short)
    emitted = [AttemptEnded(stage="s", attempt=n, reason=EndReason.ERROR, detail="d" * 80) for n in range(3)]
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


def test_records_that_wait_for_a_disk_are_bounded_and_the_oldest_is_dropped_first(
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
        writer.emit(AttemptEnded(stage="s", attempt=number, reason=EndReason.ERROR))
        writer.emit(step(number))
        assert len(writer._waiting) <= 50
    assert writer._waiting_bytes == sum(map(len, writer._waiting))
    writer.emit(AttemptEnded(stage="s", attempt=200, reason=EndReason.ERROR, detail="d" * 39_000))
    assert writer._waiting_bytes <= 40_000
    full = False
    writer.close()
    found = read(tmp_path)
    missing, lost = account(found)
    assert missing == lost
    kept = [event.attempt for event in found if isinstance(event, AttemptEnded)]
    assert kept == list(range(201))[-len(kept) :]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_gap_has_the_disk_s_own_words_and_lifecycle_records_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(emitter, "SYNC_INTERVAL_S", 3600.0)
    writer, real, failing = writer_for(tmp_path), os.write, True

    def write(fd: int, data: bytes) -> int:
        if failing:
            raise OSError(number, os.strerror(number))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    for attempt in range(1, 4):
        writer.emit(step(attempt))
        writer.emit(AttemptEnded(stage="s", attempt=attempt, reason=EndReason.ERROR))
    failing = False
    writer.emit(Warned(message="the disk is back"))
    writer.close()
    found = read(tmp_path)[1:]
    assert [event.attempt for event in found if isinstance(event, AttemptEnded)] == [1, 2, 3]
    assert {event.reason for event in found if isinstance(event, Gap)} == {os.strerror(number)}
    assert account([*read(tmp_path)]) == (3, 3), "the three steps, counted"
    assert isinstance(found[-1], Warned)


def test_a_journal_that_cannot_be_opened_does_not_stop_the_writer(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "later" / "journal.jsonl", None, role=WriterRole.ENGINE)
    for number in range(5):
        writer.emit(step(number))
    (tmp_path / "later").mkdir()
    writer.close()
    found = list(read_journal(tmp_path / "later" / "journal.jsonl"))
    assert [type(event) for event in found] == [WriterOpened, Gap]
    assert account(found) == (5, 5)


def test_a_new_writer_begins_on_a_new_line(tmp_path: Path) -> None:
    first = encode_record(Gap(lost=1), writer="e1", seq=0, t=1.0, m=1.0)
    (tmp_path / "journal.jsonl").write_bytes(first + b'{"v":1,"w":"e1","seq":1,"t":1.0,"m":1.0,"k":"ste')
    writer = writer_for(tmp_path)
    writer.close()
    reader = JournalReader(tmp_path / "journal.jsonl")
    assert [record.event.w for record in reader.read()] == ["e1", writer.writer]
    assert reader.bad == 1
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(first), "no writer repairs a journal"
