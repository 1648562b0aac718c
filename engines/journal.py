"""Reading a journal: the one reader for live screens, replay, headless commands and reports.

A reader never changes the file. A line that is not whole yet is waited for; a line that is bad costs itself and no
neighbour: every record start inside it is looked for, what decodes is kept, and the rest is counted. A sequence number
that jumps ahead, and that the writer's next record contradicts, was damaged: it costs its record, not those after it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from engines.events import (
    MAX_RECORD_BYTES,
    AnyEvent,
    Gap,
    UnknownKindError,
    UnreadableRecordError,
    decode_record,
)
from engines.files import open_regular
from engines.run_dir import RunDir

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 128
_START = re.compile(rb'\{"v":\d{1,6},"w":"')
MAX_LINE_BYTES = 1 << 20
"""A longer line is nobody's record: it is skipped without being kept in memory."""


class Record(NamedTuple):
    """An event and its line, without the newline."""

    event: AnyEvent
    line: bytes


class JournalReader:
    """Reads one journal file in order, again and again as it grows.

    Attributes:
        bad: lines (or parts of lines) that were not records, and records whose sequence number was damaged.
        unknown: records of kinds that this version does not know.
        restarted: times the file shrank or was replaced, and reading began anew.
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

    def read(self, max_records: int = 2000) -> list[Record]:
        """The next records, at most about `max_records`; empty when there is nothing new."""
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
            while len(records) < max_records:
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
        """Whether what was read so far ends within a line."""
        return bool(self._rest)

    def finish(self) -> list[Record]:
        """What is left when no more will come: a last line without newline, if it is whole."""
        records: list[Record] = []
        rest, self._rest = self._rest, b""
        if rest.strip(b"\0\r\n "):
            self._take_line(rest, records)
        self._release(records)
        return records

    def _notice_replacement(self, fd: int) -> None:
        status = os.fstat(fd)
        # An inode's number is given to the next file, so the beginning is looked at too.
        head = os.pread(fd, HEAD_BYTES, 0)
        same = status.st_ino == self._inode and status.st_size >= self.offset and head.startswith(self._head)
        if self._inode is not None and not same:
            self.restarted += 1
            self.offset, self._rest, self._skipping = 0, b"", False
        self._inode, self._head = status.st_ino, head

    def _take(self, chunk: bytes, records: list[Record]) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if self._skipping and lines:
            self._skipping = False
            self._salvage(lines.pop(0), records)
        if len(self._rest) > MAX_LINE_BYTES:
            self.bad += not self._skipping
            # A record may have begun at its end: keep as much as one can have.
            keep = self._rest.rfind(b'{"v":', len(self._rest) - MAX_RECORD_BYTES)
            keep = len(self._rest) if keep < 0 else keep
            self._salvage(self._rest[:keep], records)
            self._rest, self._skipping = self._rest[keep:], True
        for line in lines:
            if line:
                self._take_line(line, records)

    def _take_line(self, line: bytes, records: list[Record]) -> None:
        if b"\0" in line:
            line = line.replace(b"\0", b"")
            if not line.strip():
                return
        if not self._decode(line, records):
            self.bad += 1
            self._salvage(line, records)

    def _decode(self, line: bytes, records: list[Record]) -> bool:
        """Take one line; False when it is not a record."""
        try:
            event = decode_record(line)
        except UnknownKindError:
            self.unknown += 1
        except UnreadableRecordError:
            return False
        else:
            self._keep(Record(event, line), records)
        return True

    def _salvage(self, line: bytes, records: list[Record]) -> None:
        """Records inside a bad line: torn ones before them, or lost line ends between them, are not their fault.

        A record never holds a record start: quotes inside its texts are escaped.
        """
        starts = [match.start() for match in _START.finditer(line)]
        for start, end in pairwise([*starts, len(line)]):
            piece = line[start:end]
            if len(piece) == len(line) or not self._decode(piece, records):
                whole = piece[: piece.rfind(b"}") + 1]
                if whole and len(whole) < len(piece):
                    self._decode(whole, records)

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
        if event.seq < expected:  # known already: a file that was replaced by a copy of itself, say
            return
        if event.seq == expected or (isinstance(event, Gap) and event.seq - expected <= event.lost):
            self._give(record, records)
        else:  # a jump: true if the writer's next record is beyond it, or if there is none
            self._held[writer] = record

    def _give(self, record: Record, records: list[Record]) -> int:
        records.append(record)
        self._next[record.event.w] = record.event.seq + 1
        return record.event.seq + 1

    def _release(self, records: list[Record]) -> None:
        while self._held:
            self._give(self._held.pop(next(iter(self._held))), records)


def journal_files(run_root: Path) -> list[Path]:
    """The journal and the parts that other ranks and hosts wrote."""
    run = RunDir(run_root)
    parts = run.journal_parts
    return [run.journal, *(sorted(parts.glob("*.jsonl")) if parts.is_dir() else [])]


def read_records(path: Path) -> Iterator[Record]:
    """Every record of a journal file as it is now, in the order of the file."""
    reader = JournalReader(path)
    while not reader.at_end:
        yield from reader.read(10_000)
    yield from reader.finish()


def read_journal(path: Path) -> Iterator[AnyEvent]:
    """Every event of a journal file as it is now, in the order of the file."""
    for record in read_records(path):
        yield record.event


__all__ = ["MAX_RECORD_BYTES", "JournalReader", "Record", "journal_files", "read_journal", "read_records"]
