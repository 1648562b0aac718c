"""Reading a journal: the one reader for live screens, replay, headless commands and reports.

A reader never changes the file. A line that is not whole yet is waited for; a line that is bad costs itself and no
neighbour: the last record start inside it is looked for, what decodes is kept, and the rest is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engines.events import (
    MAX_RECORD_BYTES,
    RECORD_START,
    AnyEvent,
    UnknownKindError,
    UnreadableRecordError,
    decode_record,
)

CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20
"""A longer line is nobody's record: it is skipped without being kept in memory."""


class Record(NamedTuple):
    """An event and its line, without the newline."""

    event: AnyEvent
    line: bytes


class JournalReader:
    """Reads one journal file in order, again and again as it grows.

    Attributes:
        bad: lines (or parts of lines) that were not records.
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
        self._rest = b""
        self._skipping = False
        self._next: dict[str, int] = {}

    def read(self, max_records: int = 2000) -> list[Record]:
        """The next records, at most about `max_records`; empty when there is nothing new."""
        records: list[Record] = []
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.at_end = True
            return records
        try:
            self._notice_replacement(fd)
            self.at_end = False
            while len(records) < max_records:
                chunk = os.pread(fd, CHUNK_BYTES if max_records > 1000 else 65_536, self.offset)
                if not chunk:
                    self.at_end = True
                    break
                self.offset += len(chunk)
                self._take(chunk, records)
        finally:
            os.close(fd)
        return records

    def finish(self) -> list[Record]:
        """What is left when no more will come: a last line without newline, if it is whole."""
        records: list[Record] = []
        rest, self._rest = self._rest, b""
        if rest.strip(b"\0\r\n "):
            self._take_line(rest, records)
        return records

    def _notice_replacement(self, fd: int) -> None:
        status = os.fstat(fd)
        if self._inode is not None and (status.st_ino != self._inode or status.st_size < self.offset):
            self.restarted += 1
            self.offset, self._rest, self._skipping = 0, b"", False
        self._inode = status.st_ino

    def _take(self, chunk: bytes, records: list[Record]) -> None:
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if self._skipping and lines:
            self._skipping = False
            del lines[0]
        if len(self._rest) > MAX_LINE_BYTES:
            if not self._skipping:
                self.bad += 1
            self._rest, self._skipping = b"", True
        for line in lines:
            if line:
                self._take_line(line, records)

    def _take_line(self, line: bytes, records: list[Record]) -> None:
        if b"\0" in line:
            line = line.replace(b"\0", b"")
            if not line.strip():
                return
        try:
            event = decode_record(line)
        except UnknownKindError:
            self.unknown += 1
            return
        except UnreadableRecordError:
            self.bad += 1
            start = line.rfind(RECORD_START, 1)
            if start > 0:
                self._take_tail(line[start:], records)
            return
        self._keep(event, line, records)

    def _take_tail(self, line: bytes, records: list[Record]) -> None:
        try:
            self._keep(decode_record(line), line, records)
        except UnknownKindError:
            self.unknown += 1
        except UnreadableRecordError:
            return

    def _keep(self, event: AnyEvent, line: bytes, records: list[Record]) -> None:
        expected = self._next.get(event.w, 0)
        if event.seq < expected:  # a record written again after a short write that had been whole after all
            return
        self._next[event.w] = event.seq + 1
        records.append(Record(event, line))


def journal_files(run_root: Path) -> list[Path]:
    """The journal and the parts that other ranks and hosts wrote."""
    parts = run_root / "journal.d"
    return [run_root / "journal.jsonl", *(sorted(parts.glob("*.jsonl")) if parts.is_dir() else [])]


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
