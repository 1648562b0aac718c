"""Watching a folder of runs; only what is new is read."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TypeAlias

from cockpit.runs.find import listed_runs
from cockpit.runs.reader import RunReader
from cockpit.runs.summaries import (
    JournalSize,
    RunSummary,
    stored_summary,
    summary_of,
    summary_of_unread,
    summary_of_unreadable,
)
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import RunStatus

FULL_POLL_EVERY = 20
"""Polls between two checks of runs that have ended: an operator may have resumed one elsewhere."""
KEPT_ENDED = 8
"""Readers of ended runs that are kept for reuse; those of runs that have not ended are all kept."""


LONG_BYTES = 4 << 20
_Known: TypeAlias = tuple[JournalSize, RunSummary]
_UNREADABLE = (RunDirError, OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError)
"""What the files of a run that another program or user wrote may raise; one run's failure is that run's row."""


class RunWatch:
    """The runs of a folder, newest first: their summaries, and the reader of each run that is shown.

    A running run has one reader, which the list and the preview share. Each poll checks new runs and runs that have not
    ended. Several threads may call it.

    Attributes:
        trouble: why the folder could not be read at the last poll; empty if it could, or does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[JournalSize, RunSummary]] = {}
        self._readers: dict[str, RunReader] = {}
        self._ended: dict[str, None] = {}
        self._keeping = Lock()
        self.trouble = ""
        self._polls = 0
        self._until_s = math.inf

    def poll(self, *, budget_s: float = math.inf) -> list[RunSummary]:
        """The present summaries; a run that cannot be read has the state "unreadable" and the reason.

        Args:
            budget_s: time for long journals. Runs that need more have a summary without a state and with the share that
                was read (`RunSummary.reading`); the next poll continues.
        """
        whole = self._polls % FULL_POLL_EVERY == 0
        self._polls += 1
        self._until_s = time.monotonic() + budget_s
        ids, self.trouble = listed_runs(self.root)
        found = {}
        for run_id in sorted(ids, key=self._is_long):  # long journals last: no other run waits for them
            known = self._known.get(run_id)
            if known is None or whole or not known[1].state.has_ended:
                known = self._summary_or_trouble(run_id, known)
            found[run_id] = known
        self._known = {run_id: found[run_id] for run_id in ids}
        self._forget_all_but(set(found))
        return [summary for _, summary in self._known.values()]

    def _is_long(self, run_id: str) -> bool:
        """Whether a run's journal may take a noticeable time; not asked again of a run that is known."""
        if run_id in self._known and self._known[run_id][1].reading is None:
            return False
        try:
            return RunDir(self.root / run_id).journal.stat().st_size > LONG_BYTES
        except OSError:
            return False

    def _summary_or_trouble(self, run_id: str, known: _Known | None) -> _Known:
        try:
            return self._summary(run_id, known)
        except _UNREADABLE as error:
            why = str(error) or type(error).__name__
            return JournalSize(0, 0), summary_of_unreadable(RunDir(self.root / run_id), why)

    def look_again(self) -> None:
        """Check every run in the next poll, because a run was started or stopped here."""
        self._polls = 0

    def read_on(self, run_id: str, budget_s: float) -> float | None:
        """Read more of a run's journals; returns the share that was read, or None at their end."""
        reader = self._reader(run_id)
        with reader.lock:
            return None if reader.catch_up_until(time.monotonic() + budget_s) else reader.share_read

    def keep_progress(self) -> None:
        """Store what was read of long journals, so that the next list continues there."""
        for reader in self._readers.values():
            with reader.lock:
                reader.keep_progress()

    @contextmanager
    def reading(self, run_id: str) -> Iterator[RunReader]:
        """The run's reader, at the end of its journals; no other thread changes its state while the block runs."""
        reader = self._reader(run_id)
        with reader.lock:
            reader.catch_up()
            if reader.state.state.has_ended or not reader.is_live():
                self._keep_ended(run_id, instead_of_another=True)
            yield reader

    def _summary(self, run_id: str, known: tuple[JournalSize, RunSummary] | None) -> tuple[JournalSize, RunSummary]:
        """A run's summary; cheap if the run has ended and its journal has not changed since the last one."""
        run = RunDir(self.root / run_id)
        closed = run.closed_to_us()
        if closed is not None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed))
        size = JournalSize.of(run)
        if known is not None and known[0] == size and self._is_settled(run, known[1]):
            return size, replace(known[1], note=run.read_note())
        stored = stored_summary(run, size) if known is None else None
        if stored is not None:
            return size, stored
        reader = self._reader(run_id)
        with reader.lock:
            if not reader.catch_up_until(self._until_s):
                return size, summary_of_unread(reader)
            summary = summary_of(reader)
        if summary.state.has_ended:
            self._keep_ended(run_id, instead_of_another=False)
        return size, summary

    def _is_settled(self, run: RunDir, summary: RunSummary) -> bool:
        """Whether the summary stays true while the journals do not change: no process is left to write."""
        if summary.reading is not None or not (summary.state.has_ended or summary.state == RunStatus.LOST):
            return False
        if summary.state == RunStatus.LOST:
            if lock_is_held(run.supervisor_lock):
                return False
            self._keep_ended(run.id, instead_of_another=False)
        return True

    def _reader(self, run_id: str) -> RunReader:
        with self._keeping:
            self._ended.pop(run_id, None)
            return self._readers.setdefault(run_id, RunReader(RunDir(self.root / run_id), indexed=True))

    def _keep_ended(self, run_id: str, *, instead_of_another: bool) -> None:
        """Keep the reader of a run that has ended, up to `KEPT_ENDED`; then drop the oldest, or this one."""
        with self._keeping:
            if len(self._ended) >= KEPT_ENDED:
                dropped = next(iter(self._ended)) if instead_of_another else run_id
                self._ended.pop(dropped, None)
                self._readers.pop(dropped, None)
            if run_id in self._readers:
                self._ended[run_id] = None

    def _forget_all_but(self, listed: set[str]) -> None:
        with self._keeping:
            for run_id in set(self._readers) - listed:
                del self._readers[run_id]
                self._ended.pop(run_id, None)
