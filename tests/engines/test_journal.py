from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.events.kinds import AnyEvent
from engines.events.records import encode_record
from engines.events.steps import Step
from engines.events.writers import Gap, Warned
from engines.journal import (
    CHUNK_BYTES,
    MAX_LINE_BYTES,
    READ_BYTES,
    JournalReader,
    journal_files,
    read_journal,
    read_records,
)

SEED = 20261120
WRITERS = ("e0123456789", "s9876543210")


def line(writer: str, seq: int) -> bytes:
    """A record that differs from every other one, with texts and numbers that are sensitive to damage."""
    event: AnyEvent
    if seq % 5 == 3:
        event = Warned(message=f'{writer}/{seq} "quoted" {{"v":1,"w":" Grüße \n \0 \x1b[2J null', stage="NaN")
    else:
        loss = math.nan if seq % 7 == 0 else 2.5
        event = Step(
            stage="base", attempt=1, step=seq, epoch=0.1, loss=loss, learning_rate=1e-4, grad_norm=None,
            tokens=seq * 512,
            loss_tokens=seq, step_s=0.05, metrics={"a": 1.5},
        )  # fmt: skip
    return encode_record(event, writer=writer, seq=seq, t=1_700_000_000 + seq, m=float(seq))


def journal(count: int, writers: Sequence[str] = WRITERS) -> list[bytes]:
    """Lines of some writers in turn, each numbered from 0."""
    return [line(writer, seq) for seq in range(count) for writer in writers]


def names(events: Sequence[AnyEvent]) -> list[tuple[str, int]]:
    return [(event.w, event.seq) for event in events]


def read(path: Path, data: bytes) -> tuple[list[bytes], JournalReader]:
    path.write_bytes(data)
    reader = JournalReader(path)
    records = []
    while not reader.at_end:
        records += reader.read(50)
    records += reader.finish()
    return [record.line for record in records], reader


def test_a_journal_is_read_in_file_order_and_record_by_record(tmp_path: Path) -> None:
    lines = journal(200)
    found, reader = read(tmp_path / "j", b"".join(lines))
    assert [each + b"\n" for each in found] == lines
    assert (reader.bad, reader.unknown, reader.restarted) == (0, 0, 0)


def test_a_missing_journal_gives_no_records(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "j")
    assert reader.read() == []
    assert reader.at_end
    (tmp_path / "j").write_bytes(line("e1", 0))
    assert names([record.event for record in reader.read()]) == [("e1", 0)]


def test_a_journal_that_grows_byte_by_byte_gives_each_record_once_and_only_when_it_is_complete(tmp_path: Path) -> None:
    lines = journal(4)
    path, data = tmp_path / "j", b"".join(lines)
    ends = list(accumulate(map(len, lines)))
    path.touch()
    reader, given_so_far = JournalReader(path), 0
    with path.open("ab", buffering=0) as file:
        for at in range(len(data)):
            file.write(data[at : at + 1])
            given_so_far += len(reader.read())
            assert given_so_far == sum(1 for end in ends if end <= at + 1)
    assert (reader.bad, reader.unknown) == (0, 0)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 4000), max_size=40), st.integers(1, 60))
def test_chunking_and_batch_size_do_not_change_the_records(tmp_path: Path, sizes: list[int], at_once: int) -> None:
    lines = journal(40)
    data, path, at = b"".join(lines), tmp_path / "j", 0
    path.write_bytes(b"")
    reader, found = JournalReader(path), []
    for size in [*sizes, len(data)]:
        with path.open("ab") as file:
            file.write(data[at : at + size])
        at += size
        found += reader.read(at_once)
    while not reader.at_end:
        found += reader.read(at_once)
    assert [record.line + b"\n" for record in found] == lines


def test_a_journal_cut_at_any_byte_of_its_last_three_records_keeps_the_complete_ones(tmp_path: Path) -> None:
    lines = journal(10)
    data, tail = b"".join(lines), sum(map(len, lines[-3:]))
    for cut in range(len(data) - tail, len(data)):
        found, reader = read(tmp_path / "j", data[:cut])
        # Without its newline a record is complete when the file will not grow.
        whole = [each for each in lines if data.index(each) + len(each) - 1 <= cut]
        assert [each + b"\n" for each in found] == whole
        assert reader.bad == (
            0 if cut in {data.index(each) + k for each in lines[-3:] for k in (0, len(each) - 1)} else 1
        )


def test_a_journal_that_is_cut_and_appended_to_loses_only_the_torn_record(tmp_path: Path) -> None:
    lines = journal(6)
    for index in range(3, 9):
        for cut in range(len(lines[index])):
            torn = [*lines[:index], lines[index][:cut], b"\n", *lines[index + 1 :]]  # as a writer continues
            found, _ = read(tmp_path / "j", b"".join(torn))
            missing = [each for n, each in enumerate(lines) if each[:-1] not in found and n != index]
            assert missing == []
            merged = [*lines[:index], lines[index][:cut], *lines[index + 1 :]]  # as a writer that does not notice it
            found, _ = read(tmp_path / "j", b"".join(merged))
            missing = [each for n, each in enumerate(lines) if each[:-1] not in found and n != index]
            assert missing == [], f"cut at {cut} of {index}"


def test_lost_line_ends_lose_no_record(tmp_path: Path) -> None:
    lines = journal(10)
    draw = random.Random(SEED)
    for _ in range(200):
        ends = [draw.choice([b"\n", b"", b"\0", b"J", b"\r", b'"', b"*"]) for _ in lines]
        found, _ = read(tmp_path / "j", b"".join(each[:-1] + end for each, end in zip(lines, ends, strict=True)))
        assert [each.rstrip(b"\r") for each in found] == [each[:-1] for each in lines]


def test_one_flipped_bit_loses_at_most_its_record(tmp_path: Path) -> None:
    """The bit may be in a brace, a newline, the kind, the writer's name or its sequence number."""
    lines = journal(12)
    data = b"".join(lines)
    draw = random.Random(SEED)
    for _ in range(3000):
        bit = draw.randrange(len(data) * 8)
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        found, _ = read(tmp_path / "j", bytes(damaged))
        start, untouched = 0, []
        for each in lines:
            if not start <= bit // 8 < start + len(each) - 1:
                untouched.append(each[:-1])
            start += len(each)
        lost = [each for each in untouched if each not in found]
        assert lost == [], f"bit {bit}: {damaged[max(0, bit // 8 - 40) : bit // 8 + 40]!r}"


def test_holes_and_tails_of_zeros_lose_only_what_they_cover(tmp_path: Path) -> None:
    lines = journal(12)
    data = b"".join(lines)
    draw = random.Random(SEED)
    for _ in range(1000):
        at, size = draw.randrange(len(data)), draw.choice([1, 7, 100, 700])
        damaged = data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]
        found, _ = read(tmp_path / "j", damaged)
        start = 0
        for each in lines:
            if start + len(each) <= at or start >= at + size:
                assert each[:-1] in found
            start += len(each)
    tailed, reader = read(tmp_path / "j", data + bytes(5000))
    assert len(tailed) == len(lines)
    assert reader.bad == 0, "a tail of zeros, as after a power cut, is not a record"


def test_no_mixture_of_damage_raises_and_every_intact_line_survives(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    junk = [
        b"\n", b"\0" * 100, b"garbage\n", b"{" * 3000 + b"\n", b'{"v":1,"w":"', b"\xff\xfe\n", b"9" * 400 + b"\n",
        b'{"v":1,"w":"e0123456789","seq":', b'{"v":1,"w":"x","seq":0,"t":0,"m":0,"k":"news"}\n', b"[" * 20_000 + b"\n",
    ]  # fmt: skip
    for _ in range(300):
        lines, data = journal(8), b""
        for each in lines:
            if draw.random() < 0.5:
                data += b"".join(draw.choices(junk, k=draw.randint(1, 3)))
            # The bytes before it may lack a line end; the record's start is then inside a bad line.
            data += each
        found, _ = read(tmp_path / "j", data)
        assert [each for each in lines if each[:-1] not in found] == []


def test_a_line_of_two_megabytes_is_skipped_in_bounded_memory_and_its_neighbours_are_read(tmp_path: Path) -> None:
    before, after = line("e1", 0), line("e1", 1)
    for junk in (b"x" * (2 << 20), b'{"v":1,"w":"e1","seq":1,' + b" " * (2 << 20), b"[" * (2 << 20)):
        path = tmp_path / "j"
        path.write_bytes(before + junk + b"\n" + after)
        reader, found = JournalReader(path), []
        while not reader.at_end:
            found += reader.read(50)
            assert len(reader._rest) <= MAX_LINE_BYTES + (1 << 20)
        assert [record.line + b"\n" for record in found] == [before, after]
        assert reader.bad == 1
        merged, _ = read(path, before + junk + after)
        assert merged == [before[:-1], after[:-1]], "even when the long line contains the record's beginning"


def test_kinds_of_a_later_version_are_counted_and_known_ones_are_read(tmp_path: Path) -> None:
    later = line("e1", 1).replace(b'{"v":1', b'{"v":3')
    unknown = line("e1", 0).replace(b'"step"', b'"news"')
    found, reader = read(tmp_path / "j", unknown + later + later[:40] + line("e1", 2).replace(b'{"v":1', b'{"v":3'))
    assert len(found) == 2
    assert reader.unknown == 3, "an unknown kind, and two records of a newer version"
    assert reader.bad == 1


def test_a_replaced_journal_is_read_from_its_start_and_no_record_is_given_twice(tmp_path: Path) -> None:
    lines, path = journal(10), tmp_path / "j"
    path.write_bytes(b"".join(lines[:12]))
    reader = JournalReader(path)
    assert len(reader.read()) == 12
    copy = tmp_path / "copy"
    copy.write_bytes(b"".join(lines))
    copy.rename(path)
    assert [record.line + b"\n" for record in reader.read()] == lines[12:]
    assert reader.restarted == 1


def test_a_journal_that_is_cut_and_appended_to_continues_with_the_new_records(tmp_path: Path) -> None:
    lines, path = journal(10, ["e1"]), tmp_path / "j"
    path.write_bytes(b"".join(lines[:6]))
    reader = JournalReader(path)
    assert len(reader.read()) == 6
    os.truncate(path, 10)
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(b"\n" + b"".join(lines[6:]))
    assert [record.line + b"\n" for record in reader.read()] == lines[6:]
    assert reader.restarted == 1
    path.unlink()
    assert reader.read() == []
    assert reader.at_end


def test_a_jump_over_a_recorded_gap_is_accepted_and_one_without_a_gap_is_skipped(tmp_path: Path) -> None:
    def gap(seq: int, lost: int) -> bytes:
        return encode_record(Gap(lost=lost), writer="e1", seq=seq, t=1.0, m=1.0)

    found_events, _ = read(tmp_path / "j", line("e1", 0) + gap(8, 7) + line("e1", 9))
    assert len(found_events) == 3
    untold, _ = read(tmp_path / "j", line("e1", 0) + line("e1", 5) + line("e1", 6))
    assert len(untold) == 3
    last, _ = read(tmp_path / "j", line("e1", 0) + line("e1", 5))
    assert len(last) == 2


def test_a_sequence_number_that_the_next_record_contradicts_loses_its_own_record(tmp_path: Path) -> None:
    damaged = line("e1", 1).replace(b'"seq":1,', b'"seq":91,')
    found, reader = read(tmp_path / "j", line("e1", 0) + damaged + line("e1", 2) + line("e1", 3))
    assert found == [line("e1", seq)[:-1] for seq in (0, 2, 3)]
    assert reader.bad == 1


def test_a_jump_is_given_when_no_record_can_contradict_it(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(line("e1", 0) + line("e1", 5))
    reader = JournalReader(path)
    assert names([record.event for record in reader.read()]) == [("e1", 0), ("e1", 5)]


def test_the_parts_of_other_ranks_are_found(tmp_path: Path) -> None:
    (tmp_path / "journal.d").mkdir()
    for name in ("r2.jsonl", "r1.jsonl", "notes.txt"):
        (tmp_path / "journal.d" / name).write_bytes(b"")
    assert [path.name for path in journal_files(tmp_path)] == ["journal.jsonl", "r1.jsonl", "r2.jsonl"]
    assert [path.name for path in journal_files(tmp_path / "none")] == ["journal.jsonl"]


def test_the_two_ways_to_read_a_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"".join(journal(30))[:-7])
    assert names(list(read_journal(path))) == names([record.event for record in read_records(path)])


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"".join(journal(3)) + b"torn")
    path.chmod(0o400)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    list(read_journal(path))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_records_of_a_newer_version_are_read_as_far_as_they_are_known_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    old = b'{"v":1,"w":"a","seq":0,"t":1,"m":1,"k":"phase","stage":"s","attempt":1,"name":"x"}\n'
    path.write_bytes(old + old.replace(b'"v":1', b'"v":2').replace(b'"seq":0', b'"seq":1'))
    reader = JournalReader(path)
    assert [record.event.seq for record in reader.read()] == [0, 1]
    assert (reader.unknown, reader.bad) == (1, 0)


def test_one_read_of_a_journal_that_repeats_its_records_ends_after_a_bounded_part(tmp_path: Path) -> None:
    lines = journal(25)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(lines) * (3 * READ_BYTES // sum(map(len, lines)) + 1))
    reader = JournalReader(path)
    found, reads = [], 0
    while not reader.at_end:
        before = reader.offset
        found += reader.read()
        assert reader.offset - before <= READ_BYTES + CHUNK_BYTES
        reads += 1
    assert reads >= 3
    assert len(found) == 50
