"""Following a run: the journal and the live stream as one sequence of events, each exactly once.

Per writer, the event with the next sequence number is applied; older ones are known already; a younger one means that
the live stream lost something, and the journal is read first. What the journal does not have either (a full disk) is
passed over, so that charts move, and given when the journal has it after all. The order between writers is left as it
comes: the fold does not depend on it.
"""

from __future__ import annotations

import select
import time
from pathlib import Path

from cockpit.runs.live_stream import LiveStream
from cockpit.runs.sequence import Numbers
from engines.events import AnyEvent, UnreadableRecordError, WriterOpened, decode_record
from engines.journal import JournalReader, journal_files
from engines.run_dir import RunDir

RECONNECT_S = 2.0


class Follower:
    """Everything a run says, from its first record on.

    Attributes:
        bad, unknown: records of the journal that could not be read, or are of unknown kinds.
        behind: whether the journal holds more than has been returned.
    """

    def __init__(self, run_root: Path, *, live: bool = True) -> None:
        self.run = RunDir(run_root)
        self._readers: dict[Path, JournalReader] = {}
        self._live = LiveStream(run_root) if live else None
        self._retry_s = 0.0
        self._numbers: dict[str, Numbers] = {}
        self._early: dict[str, list[AnyEvent]] = {}
        self.behind = True

    @property
    def bad(self) -> int:
        return sum(reader.bad for reader in self._readers.values())

    @property
    def unknown(self) -> int:
        return sum(reader.unknown for reader in self._readers.values())

    @property
    def restarted(self) -> int:
        return sum(reader.restarted for reader in self._readers.values())

    def poll(self, timeout_s: float = 0.0, max_records: int = 2000) -> list[AnyEvent]:
        """New events; waits up to `timeout_s` for the live stream when the journal has nothing more."""
        live = self._read_live()
        events = self._read_journal(max_records)
        self.behind = len(events) >= max_records
        if not self.behind:
            self._apply_live(live, events)
        else:
            self._keep_early(live)
        if not events and timeout_s > 0:
            self._wait(timeout_s)
            live = self._read_live()
            events = self._read_journal(max_records)
            self._apply_live(live, events)
        return events

    def close(self) -> None:
        if self._live is not None:
            self._live.close()

    def _read_journal(self, max_records: int) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for path in journal_files(self.run.root):
            reader = self._readers.setdefault(path, JournalReader(path))
            for record in reader.read(max_records):
                self._take(record.event, events)
        return events

    def _take(self, event: AnyEvent, events: list[AnyEvent]) -> None:
        numbers = self._numbers.setdefault(event.w, Numbers())
        if event.seq >= numbers.next:
            numbers.pass_to(event.seq)
        elif numbers.holes and numbers.is_late(event.seq):
            numbers.fill(event.seq)
        else:
            return
        events.append(event)

    def _expected(self, writer: str) -> int:
        numbers = self._numbers.get(writer)
        return numbers.next if numbers else 0

    def _read_live(self) -> list[AnyEvent]:
        if self._live is None:
            return []
        if not self._live.connected and time.monotonic() >= self._retry_s:
            self._retry_s = time.monotonic() + RECONNECT_S
            self._live.connect()
        events: list[AnyEvent] = []
        for line in self._live.read_lines():
            try:
                events.append(decode_record(line))
            except UnreadableRecordError:  # the pipe is a hint: the journal decides
                continue
        return events

    def _keep_early(self, live: list[AnyEvent]) -> None:
        for event in live:
            kept = self._early.setdefault(event.w, [])
            kept.append(event)
            del kept[:-5000]

    def _apply_live(self, live: list[AnyEvent], events: list[AnyEvent]) -> None:
        """Apply live events; the journal has just been read to its end, so what it lacks it does not have (yet)."""
        early, self._early = self._early, {}
        for event in [*(event for kept in early.values() for event in kept), *live]:
            expected = self._expected(event.w)
            if (
                event.seq > expected
                and not isinstance(event, WriterOpened)
                and self._read_again(event.w, event.seq, events)
            ):
                continue
            self._take(event, events)

    def _read_again(self, writer: str, seq: int, events: list[AnyEvent]) -> bool:
        """Read the journal once more for what is missing before `seq`; True when it brought this record too."""
        events.extend(self._read_journal(1 << 30))
        return self._expected(writer) > seq

    def _wait(self, timeout_s: float) -> None:
        fd = self._live.fileno() if self._live is not None else None
        if fd is None:
            time.sleep(min(timeout_s, 0.1))
            return
        # A record above the pipe's size comes by the journal alone, so never wait long.
        select.select([fd], [], [], min(timeout_s, 0.25))
