"""Reading a journal: the one reader for live screens, replay, headless commands and reports.

A reader never changes the file. It waits for the rest of an incomplete line. A bad line does not affect its neighbours:
the reader searches it for record starts, keeps the records that decode, and counts the rest. A sequence number that
jumps ahead and that the writer's next record contradicts was damaged: the reader drops that record, not later ones.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from engines.events.kinds import AnyEvent
from engines.events.records import MAX_RECORD_BYTES, UnknownKindError, UnreadableRecordError, decode_record
from engines.events.writers import Gap
from engines.files import open_regular
from engines.run_dir.paths import RunDir

CHUNK_BYTES = 1 << 20
READ_BYTES = 8 << 20
"""The most that one `read` reads: a journal that holds few records for its size keeps no reader waiting."""
HEAD_BYTES = 128
_START = re.compile(rb'\{"v":\d{1,6},"w":"')
_PRESENT = b'{"v":1,'
_VERSION = re.compile(rb'\{"v":(\d{1,6}),')
MAX_LINE_BYTES = 1 << 20
"""A longer line is not a record: the reader skips it without keeping it in memory."""


SAMPLED_BLOCKS = 64
SAMPLED_BYTES = 4096


def is_newer_record(line: bytes) -> bool:
    """Whether a line is a record of a newer version than this program writes; what it knows of it is read."""
    found = _VERSION.match(line)
    return found is not None and int(found[1]) > 1


class Record(NamedTuple):
    """An event, its line without the newline, and the line's place in its file (-1 when the line was salvaged)."""

    event: AnyEvent
    line: bytes
    offset: int = -1


class JournalMark(msgspec.Struct, frozen=True):
    """A place between two lines of a journal file, from which a later reader can continue.

    Attributes:
        offset: bytes before the place.
        size: the file's size when the mark was made.
        digest: of blocks spread over the bytes before the place, the first and the last ones included.
        bad: lines before the place that could not be read.
        unknown: records of unknown kinds before the place.
        next: the next sequence number of each writer.
    """

    offset: int
    size: int
    mtime_ns: int
    device: int
    inode: int
    head: bytes
    digest: bytes
    bad: int
    unknown: int
    next: dict[str, int]


def _sampled(fd: int, offset: int) -> bytes:
    """A digest of blocks spread over the first `offset` bytes of a file; cheap, whatever the file's size."""
    total = hashlib.blake2b(digest_size=16)
    last = max(0, offset - SAMPLED_BYTES)
    for at in sorted({last * block // (SAMPLED_BLOCKS - 1) for block in range(SAMPLED_BLOCKS)}):
        total.update(os.pread(fd, min(SAMPLED_BYTES, offset - at), at))
    return total.digest()


class JournalReader:
    """Reads one journal file in order, and continues as the file grows.

    Attributes:
        bad: number of lines (or parts of lines) that were not records, and of records with a damaged sequence number.
        unknown: number of records of unknown kinds, or of a newer record version.
        restarted: how often the file shrank or was replaced, so that reading restarted at its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad = 0
        self.unknown = 0
        self.restarted = 0
        self.at_end = False
        self.offset = 0
        self._inode: int | None = None
        self._head = b""
        self._rest = b""
        self._skipping = False
        self._next: dict[str, int] = {}
        self._held: dict[str, Record] = {}
        self._finished = False

    def read(self, max_records: int = 2000) -> list[Record]:
        """The next records, about `max_records` at most; after at most `READ_BYTES`, so `at_end` marks the end, not an
        empty list."""
        records: list[Record] = []
        try:
            journal = open_regular(self.path)
        except OSError:
            self.at_end = True
            return records
        with journal:
            fd = journal.fileno()
            self._notice_replacement(fd)
            self.at_end = False
            begun = self.offset
            while len(records) < max_records and self.offset - begun < READ_BYTES:
                chunk = os.pread(fd, CHUNK_BYTES if max_records > 1000 else 65_536, self.offset)
                if not chunk:
                    self.at_end = True
                    self._release(records)
                    break
                self.offset += len(chunk)
                self._take(chunk, records)
        return records

    @property
    def in_line(self) -> bool:
        """Whether the bytes read so far end within a line."""
        return bool(self._rest)

    @property
    def next(self) -> dict[str, int]:
        """The next sequence number of each writer of this file."""
        return self._next

    def mark(self) -> JournalMark | None:
        """The present place, at the end of the last complete line; None when reading could not continue from it."""
        if self._skipping or self._held or self._finished or self._inode is None:
            return None
        try:
            with open_regular(self.path) as journal:
                status = os.fstat(journal.fileno())
                offset = self.offset - len(self._rest)
                if status.st_ino != self._inode or status.st_size < offset:
                    return None
                digest = _sampled(journal.fileno(), offset)
        except OSError:
            return None
        of_file = (status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
        return JournalMark(offset, *of_file, self._head, digest, self.bad, self.unknown, dict(self._next))

    def start_at(self, mark: JournalMark) -> bool:
        """Continue from a mark instead of the beginning; False (and nothing changes) if the file is not the one that
        was marked, or its bytes before the mark differ from those that were read then."""
        try:
            with open_regular(self.path) as journal:
                status = os.fstat(journal.fileno())
                if (status.st_dev, status.st_ino) != (mark.device, mark.inode) or status.st_size < mark.size:
                    return False
                if status.st_size == mark.size and status.st_mtime_ns != mark.mtime_ns:  # changed in place
                    return False
                if not 0 <= mark.offset <= mark.size or _sampled(journal.fileno(), mark.offset) != mark.digest:
                    return False
        except OSError:
            return False
        self.offset, self.bad, self.unknown = mark.offset, mark.bad, mark.unknown
        self._inode, self._head, self._next = mark.inode, mark.head, dict(mark.next)
        return True

    def finish(self) -> list[Record]:
        """The remaining records when the file will not grow: a last line without newline, if it is complete."""
        records: list[Record] = []
        self._finished = True
        rest, self._rest = self._rest, b""
        if rest.strip(b"\0\r\n "):
            self._take_line(rest, records, self.offset - len(rest))
        self._release(records)
        return records

    def _notice_replacement(self, fd: int) -> None:
        status = os.fstat(fd)
        # File systems reuse inode numbers, so compare the beginning too.
        head = os.pread(fd, HEAD_BYTES, 0)
        same = status.st_ino == self._inode and status.st_size >= self.offset and head.startswith(self._head)
        if self._inode is not None and not same:
            self.restarted += 1
            self.offset, self._rest, self._skipping = 0, b"", False
        self._inode, self._head = status.st_ino, head

    def _take(self, chunk: bytes, records: list[Record]) -> None:
        start = self.offset - len(chunk) - len(self._rest)
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if self._skipping and lines:
            self._skipping = False
            start += len(lines[0]) + 1
            self._salvage(lines.pop(0), records)
        if len(self._rest) > MAX_LINE_BYTES:
            self.bad += not self._skipping
            # A record may begin at the end of it: keep as many bytes as one record can have.
            keep = self._rest.rfind(b'{"v":', len(self._rest) - MAX_RECORD_BYTES)
            keep = len(self._rest) if keep < 0 else keep
            self._salvage(self._rest[:keep], records)
            self._rest, self._skipping = self._rest[keep:], True
        for line in lines:
            if line:
                self._take_line(line, records, start)
            start += len(line) + 1

    def _take_line(self, line: bytes, records: list[Record], offset: int) -> None:
        if b"\0" in line:
            line, offset = line.replace(b"\0", b""), -1
            if not line.strip():
                return
        if not self._decode(line, records, offset):
            self.bad += 1
            self._salvage(line, records)

    def _decode(self, line: bytes, records: list[Record], offset: int = -1) -> bool:
        """Take one line; False when it is not a record."""
        try:
            event = decode_record(line)
        except UnknownKindError:
            self.unknown += 1
        except UnreadableRecordError:
            return False
        else:
            if not line.startswith(_PRESENT):  # a cheap check first: nearly every line has this version
                self.unknown += is_newer_record(line)
            self._keep(Record(event, line, offset), records)
        return True

    def _salvage(self, line: bytes, records: list[Record]) -> None:
        """Keep the intact records inside a bad line, which has torn records before them or lacks line ends.

        A record never contains a record start: quotes inside its texts are escaped.
        """
        starts = [match.start() for match in _START.finditer(line)]
        for start, end in pairwise([*starts, len(line)]):
            piece = line[start:end]
            if len(piece) == len(line) or not self._decode(piece, records):
                to_brace = piece[: piece.rfind(b"}") + 1]
                if to_brace and len(to_brace) < len(piece):
                    self._decode(to_brace, records)

    def _keep(self, record: Record, records: list[Record]) -> None:
        event, writer = record.event, record.event.w
        expected = self._next.get(writer, 0)
        if not self._held and event.seq == expected:  # nearly always
            records.append(record)
            self._next[writer] = event.seq + 1
            return
        held = self._held.pop(writer, None)
        if held is not None and event.seq > held.event.seq:
            expected = self._give(held, records)
        elif held is not None and event.seq >= expected:
            self.bad += 1
        if event.seq < expected:  # already read: the file was replaced by a copy of itself, for example
            return
        if event.seq == expected or (isinstance(event, Gap) and event.seq - expected <= event.lost):
            self._give(record, records)
        else:  # a jump: valid if the writer's next record is beyond it, or if no record follows
            self._held[writer] = record

    def _give(self, record: Record, records: list[Record]) -> int:
        records.append(record)
        self._next[record.event.w] = record.event.seq + 1
        return record.event.seq + 1

    def _release(self, records: list[Record]) -> None:
        while self._held:
            self._give(self._held.pop(next(iter(self._held))), records)


def journal_files(run_root: Path) -> list[Path]:
    """The journal and its parts from other ranks and hosts."""
    run = RunDir(run_root)
    try:
        parts = sorted(run.journal_parts.glob("*.jsonl")) if run.journal_parts.is_dir() else []
    except OSError:  # the whole folder is another user's, or it was moved or removed since the look
        parts = []
    return [run.journal, *parts]


def size_of(path: Path) -> int:
    """The size of a journal file in bytes; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_records(path: Path) -> Iterator[Record]:
    """Every record that a journal file has now, in file order."""
    reader = JournalReader(path)
    while not reader.at_end:
        yield from reader.read(10_000)
    yield from reader.finish()


def read_journal(path: Path) -> Iterator[AnyEvent]:
    """Every event that a journal file has now, in file order."""
    for record in read_records(path):
        yield record.event


__all__ = [
    "MAX_RECORD_BYTES",
    "JournalMark",
    "JournalReader",
    "Record",
    "journal_files",
    "read_journal",
    "read_records",
    "size_of",
]
