"""The newest records of a journal, without reading what lies before them."""

from __future__ import annotations

import os
from pathlib import Path

from engines.events.kinds import AnyEvent
from engines.events.records import UnreadableRecordError, decode_record
from engines.files import open_regular

MOST_BYTES = 1 << 16
"""One `read` decodes no more than this; what lies before it is skipped."""


class NewestRecords:
    """Records that are appended to a journal, for observers that need no fold and no earlier record.

    It judges no sequence numbers, keeps nothing, and never decodes more than `most_bytes` at once, however fast the
    journal grows.

    Args:
        journal: the journal's file; it may not exist yet.
        back_bytes: also read this many bytes before the present end.
        most_bytes: decode no more than this at once.
    """

    def __init__(self, journal: Path, back_bytes: int = 0, most_bytes: int = MOST_BYTES) -> None:
        self._path = journal
        self._most_bytes = most_bytes
        self._inode = 0
        self._offset = 0
        self._rest = b""
        self._whole = True
        try:
            with open_regular(journal) as file:
                status = os.fstat(file.fileno())
                self._inode = status.st_ino
                self._seek(max(0, status.st_size - back_bytes))
        except OSError:
            pass

    def read(self) -> list[AnyEvent]:
        """The records since the last call, oldest first; unreadable lines are left out."""
        try:
            with open_regular(self._path) as file:
                data = self._new_bytes(file.fileno())
        except OSError:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not self._whole and lines:
            lines, self._whole = lines[1:], True
        events = []
        for line in lines:
            try:
                events.append(decode_record(line))
            except UnreadableRecordError:
                continue
        return events

    def _new_bytes(self, fd: int) -> bytes:
        status = os.fstat(fd)
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset, self._rest, self._whole = status.st_ino, 0, b"", True
        if status.st_size - self._offset > self._most_bytes:
            self._seek(status.st_size - self._most_bytes)
        data = os.pread(fd, self._most_bytes, self._offset)
        self._offset += len(data)
        return data

    def _seek(self, offset: int) -> None:
        """Continue at a place that may lie within a line, whose rest is skipped."""
        # The byte before the place too: at the beginning of a line it is the end of the line before.
        self._offset, self._rest, self._whole = max(0, offset - 1), b"", offset <= 0


def newest_records(journal: Path, back_bytes: int = MOST_BYTES) -> list[AnyEvent]:
    """The last records of a journal, about `back_bytes` of them, oldest first."""
    return NewestRecords(journal, back_bytes).read()
