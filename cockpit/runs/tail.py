"""The records of a run, each exactly once: from its journals as they grow, and optionally from the live stream.

From the live stream, each writer's event with the next sequence number is returned. A lower number was returned before.
A higher number means that the stream lost records, and the journal is read first. Records that the journal lacks too
(on a full disk) are skipped, so that charts continue, and returned once the journal has them. The order between writers
is not changed, because the fold does not depend on it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cockpit.runs.live_stream import LiveStream
from cockpit.runs.sequence import Numbers
from cockpit.runs.writer_facts import HANDLERS
from engines.events.kinds import AnyEvent
from engines.events.records import UnreadableRecordError, decode_record
from engines.events.writers import WriterOpened
from engines.journal import JournalMark, JournalReader, Record, journal_files
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir

BATCH = 2000
"""Approximate maximum number of records per read: a long journal is read in parts."""
RECONNECT_S = 2.0
RECONNECT_REFUSED_S = 30.0
JOURNAL_WAIT_S = 0.1
STREAM_WAIT_S = 0.25
MOST_WITHHELD = 2000
"""Facts of the stream that wait for the journal; older ones come from the journal only."""
EARLY_RECORDS = 5000
"""Records of the stream that are kept per writer until the journal is read up to them; the journal has the rest."""


class RunTail:
    """The records of a run's files, from the first on; `RunReader` folds them.

    Args:
        place: a run directory (its journal and the journals of other ranks and hosts), or one journal file.
        live: also read the run's live stream. Records that the journal lacks have no line.

    Attributes:
        behind: whether the journals contain more than has been returned.
    """

    def __init__(self, place: Path, *, live: bool = False) -> None:
        self._place = place
        self._readers: dict[Path, JournalReader] = {}
        self._finished: dict[Path, int] = {}
        self._live = LiveStream(place) if live else None
        self._retry_s = 0.0
        self._numbers: dict[str, Numbers] = {}
        self._early: dict[str, list[Record]] = {}
        self._withheld: list[Record] = []
        self.behind = True

    @property
    def files(self) -> int:
        """The number of journals that were read."""
        return len(self._readers)

    @property
    def refused(self) -> bool:
        """Whether the run's live stream has no place for this reader, which then reads only the journal."""
        return self._live is not None and self._live.refused

    @property
    def paths(self) -> list[Path]:
        """The journals, in the order of reading."""
        return list(self._readers)

    @property
    def bad(self) -> int:
        """The number of journal lines that could not be read."""
        return sum(reader.bad for reader in self._readers.values())

    @property
    def unknown(self) -> int:
        """The number of records of kinds that this version does not support."""
        return sum(reader.unknown for reader in self._readers.values())

    @property
    def read_bytes(self) -> int:
        """Bytes of the journals before the place that was read up to, index included."""
        return sum(reader.offset for reader in self._readers.values())

    def marks(self, folded: Mapping[str, int]) -> dict[str, JournalMark] | None:
        """A mark in each journal, by its path relative to the run directory; None without such marks.

        Args:
            folded: the next sequence number of each writer in the fold. A record that came by the live stream and is
                not in the journal yet makes the marks unusable, because the journal decides.
        """
        journaled: dict[str, int] = {}
        for reader in self._readers.values():
            for writer, number in reader.next.items():
                journaled[writer] = max(number, journaled.get(writer, 0))
        if any(self._early.values()) or dict(folded) != journaled:
            return None
        found = {}
        for path, reader in self._readers.items():
            if not reader.offset:
                continue
            mark = reader.mark()
            if mark is None:
                return None
            found[path.relative_to(self._place).as_posix()] = mark
        return found or None

    def start_at(self, marks: Mapping[str, JournalMark], folded: Mapping[str, Numbers]) -> bool:
        """Continue from marks instead of the beginning; False if one does not fit its journal (then start a new tail).

        Args:
            marks: from `marks`.
            folded: the sequence numbers of each writer in the fold that continues.
        """
        for name, mark in marks.items():
            path = self._place / name
            if path not in journal_files(self._place) or not self._readers.setdefault(
                path, JournalReader(path)
            ).start_at(mark):
                return False
        if self._live is not None:
            self._numbers = {writer: numbers.copy() for writer, numbers in folded.items()}
        return True

    @property
    def torn(self) -> bool:
        """Whether a journal ends within a line: its writer is still writing it, or died while writing it."""
        return any(reader.in_line for reader in self._readers.values())

    @property
    def restarted(self) -> bool:
        """Whether a journal shrank, was replaced, or grew after `finish`: the returned records are not its content."""
        return any(
            reader.restarted or reader.offset > self._finished.get(path, reader.offset)
            for path, reader in self._readers.items()
        )

    def read(self, timeout_s: float = 0.0, max_records: int = BATCH) -> list[Record]:
        """New records; waits for them up to `timeout_s` at the end of the journals."""
        records = self._read_all(max_records)
        if not records and timeout_s > 0 and not self.behind:
            self._wait(timeout_s)
            records = self._read_all(max_records)
        return records

    def rest(self) -> Iterator[Record]:
        """All records of the journals that were not returned yet, one file after the other."""
        for _, record in self.rest_by_file():
            yield record

    def rest_by_file(self) -> Iterator[tuple[int, Record]]:
        """The records of `rest`, each with the index of its file in `paths`."""
        for number, reader in enumerate(self._open()):
            while not reader.at_end:
                for record in reader.read(5 * BATCH):
                    yield number, record
            for record in reader.finish():
                yield number, record

    def finish(self) -> list[Record]:
        """The last lines without a newline, as far as they are records; for runs to which no process writes."""
        records = [record for reader in self._readers.values() for record in reader.finish()]
        self._finished = {path: reader.offset for path, reader in self._readers.items()}
        return records

    def close(self) -> None:
        """Close the live stream."""
        if self._live is not None:
            self._live.close()

    def _read_all(self, max_records: int) -> list[Record]:
        if self._live is None:
            return self._read_journals(max_records)
        live = self._read_live(self._live)
        records = self._read_journals(max_records)
        if self.behind:
            self._keep_early(live)
        else:
            self._take_live(live, records)
        return records

    def _open(self) -> list[JournalReader]:
        """The readers of all journals that exist now."""
        files = [self._place] if self._place.is_file() else journal_files(self._place)
        return [self._readers.setdefault(path, JournalReader(path)) for path in files]

    def _read_journals(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        readers = self._open()
        for reader in readers:
            found = reader.read(max_records)
            if self._live is None:  # the only source of records: the reader returns each once
                records += found
            else:
                for record in found:
                    self._take(record, records)
        self.behind = any(not reader.at_end for reader in readers)
        return records

    def _take(self, record: Record, records: list[Record]) -> None:
        event = record.event
        numbers = self._numbers.get(event.w)
        if numbers is None:
            numbers = self._numbers[event.w] = Numbers()
        if event.seq >= numbers.next:
            numbers.pass_to(event.seq)
        elif numbers.holes and numbers.is_late(event.seq):
            numbers.fill(event.seq)
        else:
            return
        records.append(record)

    def _expected(self, writer: str) -> int:
        numbers = self._numbers.get(writer)
        return numbers.next if numbers else 0

    def _read_live(self, stream: LiveStream) -> list[Record]:
        if not stream.connected and time.monotonic() >= self._retry_s:
            self._retry_s = time.monotonic() + (RECONNECT_REFUSED_S if stream.refused else RECONNECT_S)
            stream.connect()
        records: list[Record] = []
        for line in stream.read_lines():
            try:
                records.append(Record(decode_record(line), b""))
            except UnreadableRecordError:  # the pipe is only a hint: the journal decides
                continue
        return records

    def _keep_early(self, live: list[Record]) -> None:
        for record in live:
            kept = self._early.setdefault(record.event.w, [])
            kept.append(record)
            del kept[:-EARLY_RECORDS]

    def _take_live(self, live: list[Record], records: list[Record]) -> None:
        """Add the stream's records; the journal has just been read to its end, so missing records are not in it yet."""
        early, self._early = self._early, {}
        withheld, self._withheld = self._withheld, []
        supervised = lock_is_held(RunDir(self._place).supervisor_lock)
        for record in [*(record for kept in early.values() for record in kept), *withheld, *live]:
            event = record.event
            if supervised and type(event) not in HANDLERS and self._journal_lacks(event):
                self._withheld.append(record)
                continue
            if (
                event.seq > self._expected(event.w)
                and not isinstance(event, WriterOpened)
                and self._read_again(event.w, event.seq, records)
            ):
                continue
            self._take(record, records)
        del self._withheld[:-MOST_WITHHELD]

    def _journal_lacks(self, event: AnyEvent) -> bool:
        """Whether only the stream has this fact of the run's life, so that it waits while a supervisor holds the run.

        Any process of this user can write into the pipe: it is believed about steps, phases and readings, and only the
        journal about what began, ended or was committed. A supervisor frees the lock after it wrote the end, also on a
        full disk; then the stream's facts count too.
        """
        numbers = self._numbers.get(event.w)
        return numbers is None or event.seq >= numbers.next or numbers.is_late(event.seq)

    def _read_again(self, writer: str, seq: int, records: list[Record]) -> bool:
        """Read the journals again for the records before `seq`; True if they also contained this record."""
        records.extend(self._read_journals(1 << 30))
        return self._expected(writer) > seq

    def _wait(self, timeout_s: float) -> None:
        fd = self._live.fileno() if self._live is not None else None
        if fd is None:
            time.sleep(min(timeout_s, JOURNAL_WAIT_S))
            return
        # A record that is too large for the pipe comes only through the journal, so the wait is short.
        select.select([fd], [], [], min(timeout_s, STREAM_WAIT_S))
