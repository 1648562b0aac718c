"""Writing events: one `os.write` of one complete line to the journal, and a copy into the live pipe.

The journal is authoritative: `emit` returns when the record is in it. The pipe only feeds screens, and no writer waits
for it. When the journal cannot be written (a full disk), training continues: lifecycle records wait in a bounded ring,
measurements are dropped and counted, and a `gap` record follows when writes succeed again. A writer notices when the
journal was deleted or replaced, and continues in the file that has the name now.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

from engines.events.event import Event, kind_of
from engines.events.kinds import METRIC_KINDS
from engines.events.records import encode_record
from engines.events.writers import Gap, Warned, WriterOpened
from engines.files import open_append, open_regular
from engines.identity import Identity
from engines.words import WriterRole

PIPE_RECORD_BYTES = 4096
RING_RECORDS = 10_000
RING_BYTES = 4 * 1024 * 1024
MAX_LINE_BYTES = 65_536
SYNC_INTERVAL_S = 2.0
DURABLE_KINDS = frozenset(
    {
        "run_started",
        "run_ended",
        "attempt_started",
        "attempt_ended",
        "stage_succeeded",
        "stage_failed",
        "checkpoint_committed",
        "artifact_committed",
        "guard_tripped",
    }
)


def wall_clock_s() -> float:
    """Unix seconds. No other function reads the wall clock for records."""
    return time.time()  # noqa: TID251


class EventWriter:
    """One writer of a run's journal. Thread-safe; it refuses use after a fork.

    Args:
        journal: the file to append to; created if missing.
        fifo: the run's live pipe, or None.
        role: which process of the run writes.
        launch: number of the supervisor that this process is, or that started it.
    """

    def __init__(
        self,
        journal: Path,
        fifo: Path | None,
        *,
        role: WriterRole,
        stage: str | None = None,
        attempt: int | None = None,
        rank: int = 0,
        launch: int = 0,
    ) -> None:
        self.writer = f"{role[0]}{secrets.token_hex(5)}"
        self.seq = 0
        self.lost = 0
        self._journal_path = journal
        self._fifo_path = fifo
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._fd: int | None = None
        self._pipe: int | None = None
        self._torn = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost_reason = ""
        self._unsynced = False
        self._size = 0
        self._closed = threading.Event()
        self._open_journal()
        self._open_pipe()
        own = Identity.own()
        self.opened = WriterOpened(
            role=role,
            host=socket.gethostname(),
            boot_id=own.boot_id,
            pid=own.pid,
            start_time=own.start_time,
            stage=stage,
            attempt=attempt,
            rank=rank,
            launch=launch,
        )
        self.emit(self.opened)
        threading.Thread(target=self._sync_periodically, name="journal-sync", daemon=True).start()

    def emit(self, event: Event) -> int:
        """Append one record; returns its sequence number. A full or slow disk raises nothing.

        Raises:
            RuntimeError: called in a forked child; two processes would write under one writer.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("only the process that opened the writer may emit events, not its forks")
        with self._lock:
            caught_up = self._flush_waiting()  # first: its `gap` takes the sequence number before this record
            seq = self.seq
            record = self._encode(event, seq)
            self.seq += 1
            if not (caught_up and self._append(record)):
                self._defer(event, record)
            self._send(record)
        if kind_of(event) in DURABLE_KINDS:
            self.sync()
        return seq

    def sync(self) -> None:
        """Flush written records to the disk; a failed flush does not stop the training."""
        with self._lock:
            fd, self._unsynced = self._fd, False
        if fd is not None:
            with suppress(OSError):
                os.fdatasync(fd)

    def retry_waiting(self) -> bool:
        """Write the records that wait for a full disk; True when none is left waiting."""
        with self._lock:
            caught_up = self._flush_waiting()
            if self._torn and self._fd is not None:
                with suppress(OSError):  # readers accept a line that lacks only its end once the end is written
                    self._torn = os.write(self._fd, b"\n") != 1
            return caught_up

    @property
    def behind(self) -> bool:
        """Whether a record waits for space on the disk, or was lost."""
        return bool(self._waiting or self.lost)

    def notice_replacement(self) -> None:
        """Check whether the journal was deleted, replaced or truncated; if so, reopen it by name and write a warning.

        A moved run directory has no folder under the old name: the open file is then still the right one.
        """
        with self._lock:
            if self._fd is None:
                return
            here = os.fstat(self._fd)
            try:
                named = self._journal_path.stat()
                replaced = (named.st_dev, named.st_ino) != (here.st_dev, here.st_ino)
            except OSError:
                replaced = True
            cut, self._size = here.st_size < self._size, here.st_size
            if replaced:
                old, self._size = self._fd, 0
                replaced = self._open_journal()
                if replaced:
                    os.close(old)
                    self.emit(self.opened)
            if replaced or cut:
                what = "deleted or replaced" if replaced else "truncated"
                self.emit(
                    Warned(message=f"{self._journal_path.name} was {what} during the run; records may be missing")
                )

    def close(self) -> None:
        self._closed.set()
        self.retry_waiting()
        self.sync()
        with self._lock:
            for fd in (self._fd, self._pipe):
                if fd is not None:
                    os.close(fd)
            self._fd = self._pipe = None

    def _encode(self, event: Event, seq: int) -> bytes:
        record = encode_record(event, writer=self.writer, seq=seq, t=wall_clock_s(), m=time.monotonic())
        limit = MAX_LINE_BYTES
        while len(record) > limit:  # shorten the longest text; a record is never split
            event = _shortened(event, len(record) - limit)
            record = encode_record(event, writer=self.writer, seq=seq, t=wall_clock_s(), m=time.monotonic())
        return record

    def _open_journal(self) -> bool:
        try:
            self._fd = open_append(self._journal_path)
        except OSError as error:
            self._lost_reason = error.strerror or str(error)
            return False
        self._torn = False
        # An earlier writer may have died, or hit a full disk, within a record: start on a new line.
        with suppress(OSError), open_regular(self._journal_path) as journal:
            size = journal.seek(0, os.SEEK_END)
            if size:
                journal.seek(size - 1)
                self._torn = journal.read(1) != b"\n"
        return True

    def _open_pipe(self) -> None:
        if self._fifo_path is None:
            return
        with suppress(OSError):  # a file system without pipes: screens follow the journal alone
            # Open for reading too: this process is then always a reader, so a dead reader causes no broken pipe.
            pipe = os.open(self._fifo_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISFIFO(os.fstat(pipe).st_mode):
                self._pipe = pipe
            else:  # a copied run directory, for example: a plain file would only grow
                os.close(pipe)

    def _append(self, record: bytes) -> bool:
        if self._fd is None and not self._open_journal():
            return False
        assert self._fd is not None
        line = b"\n" + record if self._torn else record
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._lost_reason = error.strerror or str(error)
            return False
        missing = len(line) - written
        self._torn = missing > 0
        if missing > 1:
            self._lost_reason = "short write"
            return False
        self._unsynced = True
        return True  # a record that lacks only its line end is complete: the next record brings the end

    def _flush_waiting(self) -> bool:
        if not self._waiting and not self.lost:
            return True
        while self._waiting:
            if not self._append(self._waiting[0]):
                return False
            self._waiting_bytes -= len(self._waiting.popleft())
        seq, lost, reason = self.seq, self.lost, self._lost_reason
        if lost:
            gap = encode_record(
                Gap(lost=lost, reason=reason), writer=self.writer, seq=seq, t=wall_clock_s(), m=time.monotonic()
            )
            if not self._append(gap):
                return False
            self._send(gap)
            self.seq += 1
            self.lost = 0
        return True

    def _defer(self, event: Event, record: bytes) -> None:
        if kind_of(event) in METRIC_KINDS:
            self.lost += 1
            return
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        while len(self._waiting) > RING_RECORDS or self._waiting_bytes > RING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.lost += 1

    def _send(self, record: bytes) -> None:
        if self._pipe is not None and len(record) <= PIPE_RECORD_BYTES:
            with suppress(OSError):  # full: no reader is fast enough; the journal has the record
                os.write(self._pipe, record)

    def _sync_periodically(self) -> None:
        while not self._closed.wait(SYNC_INTERVAL_S):
            self.notice_replacement()
            if self._waiting or self.lost or self._torn:
                self.retry_waiting()
            if self._unsynced:
                self.sync()


def _shortened(event: Event, excess_bytes: int) -> Event:
    """The same event with its longest text cut to fit, marked with `[cut]`; without a long text, its lists and tables
    become empty."""
    import msgspec

    texts = {name: value for name in event.__struct_fields__ if isinstance(value := getattr(event, name), str)}
    longest = max(texts, key=lambda name: len(texts[name]), default="")
    if not longest or len(texts[longest]) < 64:
        containers: dict[str, object] = {
            name: [] if isinstance(getattr(event, name), list) else {}
            for name in event.__struct_fields__
            if isinstance(getattr(event, name), list | dict)
        }
        return msgspec.structs.replace(event, **containers)
    text = texts[longest]
    # One character may take six bytes: never cut more than half at once.
    keep = max(16, len(text) // 2, len(text) - excess_bytes - 64)
    return msgspec.structs.replace(event, **{longest: text[:keep] + " [cut]"})
