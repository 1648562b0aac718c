"""The recorded events of a run, decoded from its journals when they are played; only their places are in memory."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import overload

from cockpit.replay.playback import Timeline
from cockpit.runs.tail import RunTail
from engines.events.kinds import AnyEvent
from engines.events.records import UnreadableRecordError, decode_record
from engines.events.writers import Warned
from engines.files import open_regular
from engines.journal import Record, journal_files, size_of

SLICE_BYTES = 4 << 20
PART_RECORDS = 2000


class RecordedEvents(Sequence[AnyEvent]):
    """The events of a run directory or of one journal file, by time, with each writer's order kept.

    The journals are read once, for `timeline`. They stay open, so that a journal that is replaced meanwhile is played
    as it was.

    Args:
        place: a run directory or a journal file.
        whole: read it now; otherwise `read_part` reads it, and until `is_read` there are no events to play.

    Attributes:
        timeline: of these events.
        is_read: whether everything was read.
        share_read: the share of the reading that is done, 0 to 1.
        unreadable: lines that could not be read.
        unknown: records of unknown kinds.
    """

    def __init__(self, place: Path, *, whole: bool = True) -> None:
        self._journals: dict[int, BufferedReader] = {}
        self._place: array[int] = array("q")
        self._length: array[int] = array("I")
        self._file: array[int] = array("I")
        self._kept: dict[int, AnyEvent] = {}
        """events without a place: salvaged from damaged lines"""
        self.timeline = Timeline()
        self.unreadable = self.unknown = 0
        self.is_read, self.share_read = False, 0.0
        self._parts = self._read(place)
        while whole and not self.is_read:
            self.read_part()

    def read_part(self) -> bool:
        """Read up to about `PART_RECORDS` more records; returns whether everything was read."""
        share = next(self._parts, None)
        self.is_read = share is None
        self.share_read = 1.0 if share is None else share
        return self.is_read

    def _read(self, place: Path) -> Iterator[float]:
        """Read everything, with a pause and the share that is done after each part."""
        tail = RunTail(place)
        files = [place] if place.is_file() else journal_files(place)
        several, total = len(files) > 1, sum(map(size_of, files)) or 1
        order: array[float] = array("d")
        latest: dict[str, float] = {}
        for number, record in tail.rest_by_file():
            if len(self._place) % PART_RECORDS == PART_RECORDS - 1:
                yield min(1.0, tail.read_bytes / total / (2 if several else 1))
            event = record.event
            latest[event.w] = max(latest.get(event.w, -math.inf), event.t)
            order.append(latest[event.w])
            self._add(number, record)
            if tail.files == 1:
                self.timeline.add(event)
        for number, path in enumerate(tail.paths):
            with suppress(OSError):
                self._journals[number] = open_regular(path)
        self.unreadable, self.unknown = tail.bad, tail.unknown
        if tail.files > 1:
            self._sort(order)
            self.timeline = Timeline()
            for index, event in enumerate(self):
                if index % PART_RECORDS == PART_RECORDS - 1:
                    yield (1 + index / len(self)) / 2
                self.timeline.add(event)

    def __len__(self) -> int:
        return len(self._place)

    @overload
    def __getitem__(self, index: int) -> AnyEvent: ...

    @overload
    def __getitem__(self, index: slice) -> list[AnyEvent]: ...

    def __getitem__(self, index: int | slice) -> AnyEvent | list[AnyEvent]:
        if isinstance(index, slice):
            return list(self._events(range(*index.indices(len(self)))))
        return next(self._events(range(len(self))[index : index + 1 or None]))

    def __iter__(self) -> Iterator[AnyEvent]:
        return self._events(range(len(self)))

    def close(self) -> None:
        """Close the journals."""
        for journal in self._journals.values():
            journal.close()

    __del__ = close

    def _add(self, number: int, record: Record) -> None:
        if record.offset < 0:
            self._kept[len(self._place)] = record.event
        self._place.append(record.offset)
        self._length.append(len(record.line))
        self._file.append(number)

    def _sort(self, key: array[float]) -> None:
        order = sorted(range(len(key)), key=key.__getitem__)
        self._place = array("q", (self._place[at] for at in order))
        self._length = array("I", (self._length[at] for at in order))
        self._file = array("I", (self._file[at] for at in order))
        self._kept = {new: self._kept[old] for new, old in enumerate(order) if old in self._kept}

    def _events(self, indexes: range) -> Iterator[AnyEvent]:
        data, start, number = b"", 0, -1
        for index in indexes:
            kept = self._kept.get(index)
            if kept is not None:
                yield kept
                continue
            place, length = self._place[index], self._length[index]
            if self._file[index] != number or place < start or place + length > start + len(data):
                number, start = self._file[index], place
                wanted = max(length, min(SLICE_BYTES, (len(indexes) * length)))
                data = os.pread(self._journals[number].fileno(), wanted, place)
            yield _decoded(data[place - start : place - start + length], index)


def _decoded(line: bytes, index: int) -> AnyEvent:
    try:
        return decode_record(line)
    except UnreadableRecordError as error:
        # A writer of its own, so that no number of a real writer is used up.
        message = f"record {index} cannot be read any more, because the journal was changed: {error}"
        return Warned(w=f"replay {index}", seq=0, message=message)
