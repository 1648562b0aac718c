"""The reader of a run: its records, each once, the state folded from them, and whether its processes live.

With `live` it reads the journal and the live stream, otherwise only the journal as it grows; `read_now` reads once to
the end. Screens, lists, followers, commands and reports all use it.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from threading import Lock

from cockpit.provenance.mark import (
    SAMPLER_MODULE,
    SUPERVISOR_MODULE,
    as_numbered_here,
    lives,
    serves,
    started_process,
    works_elsewhere,
)
from cockpit.runs.health import Clock, Health, Processes, health, process_states
from cockpit.runs.index_store import INDEX_AFTER_BYTES, Indexed, load_index, store_index
from cockpit.runs.sequence import Numbers
from cockpit.runs.state import RunState
from cockpit.runs.tail import BATCH, RunTail
from cockpit.text import formatting
from engines.emitter import wall_clock_s
from engines.events.writers import WriterOpened
from engines.identity import Identity
from engines.journal import Record, journal_files, size_of
from engines.run_dir.locks import lock_holder, lock_is_held
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import RunStatus, WriterRole

LARGE_BYTES = 1 << 30
"""A journal or a console.log above this is named on screens and in lists: no file of a run is ever cut."""
YOUNG_S = 10.0
"""A run directory that is younger and has no supervisor yet is being launched."""


def is_young(run: RunDir) -> bool:
    """Whether a run directory was created just now, so that its supervisor may be on its way."""
    try:
        created_t = float(run.read_run_json().get("created_t") or 0.0)
    except (RunDirError, TypeError, ValueError, OverflowError):
        return False
    return abs(wall_clock_s() - created_t) < YOUNG_S


class RunReader:
    """One run, read as it grows.

    Args:
        run: the run.
        live: also read the run's live stream.
        lines: read only `journal.jsonl`, in its order, so that the records' lines are the file's (for `--json`).
        indexed: start from the run's side index, if it has one that fits, and store one after a long read. `poll` then
            returns only the records after the index.

    Attributes:
        state: the fold of all records so far; a new object after a journal was replaced.
        lock: for readers that several threads share: held while a thread reads, or uses the state.
    """

    def __init__(self, run: RunDir, *, live: bool = False, lines: bool = False, indexed: bool = False) -> None:
        assert not (lines and indexed), "an index has no lines"
        self.run = run
        self.state = RunState()
        self.lock = Lock()
        self._place = run.journal if lines else run.root
        self._live = live
        self._tail = RunTail(self._place, live=live)
        self._given: dict[str, Numbers] = {}
        self._indexed = indexed
        self._begun = False
        self._stored_bytes = 0
        self._index: Indexed | None = None
        self._received_s = time.monotonic()
        self._processes = Processes()
        self._concerns: tuple[str, ...] = ()

    @property
    def share_read(self) -> float:
        """The share of the journals' bytes that was read, 0 to 1."""
        total = sum(size_of(path) for path in journal_files(self.run.root)) if self.behind else 0
        return min(1.0, self._tail.read_bytes / total) if total else float(not self.behind)

    @property
    def behind(self) -> bool:
        """Whether the journals contain more than was read."""
        return self._tail.behind

    def poll(self, timeout_s: float = 0.0, max_records: int = BATCH) -> list[Record]:
        """New records, at most about `max_records`, folded; without new records, waits for them up to `timeout_s`.

        After a journal was replaced, its content is folded from the start, and no record is returned twice.
        """
        if not self._begun:
            self._begin()
        records = self._tail.read(timeout_s, max_records)
        if self._tail.restarted:
            self._restart()
            records = self._tail.read(0.0, max_records)
        taken = self._take(records)
        if self._indexed and self._tail.read_bytes - self._stored_bytes >= INDEX_AFTER_BYTES and not self.behind:
            self._store()
        return taken

    def catch_up(self) -> bool:
        """Read to the end, in parts; returns whether anything was new."""
        state, version = self.state, self.state.version
        self.catch_up_until(math.inf)
        return self.state is not state or state.version != version

    def catch_up_until(self, end_s: float) -> bool:
        """Read towards the end, at least one part, until a monotonic time; returns whether the end was reached."""
        self.poll()
        while self.behind and time.monotonic() < end_s:
            self.poll()
        return not self.behind

    def refresh(self) -> RunStatus:
        """Read to the end and check the processes; returns the run's real state.

        If no process is left to write, a last line without a newline counts too.
        """
        self.catch_up()
        real = self.look()
        if self._tail.torn and (real.has_ended or real == RunStatus.LOST):
            self.finish()
            real = self.look()
        return real

    def finish(self) -> None:
        """Read a last line without a newline, if it is a record; for runs to which no process writes."""
        self._take(self._tail.finish())

    def look(self) -> RunStatus:
        """The run's state after a check of its processes: `lost` is a run that has not ended and has no process."""
        state = self.state
        if state.state.has_ended or self.is_live():
            return state.state
        return RunStatus.QUEUED if state.started_t is None and is_young(self.run) else RunStatus.LOST

    def health(self, real: RunStatus, *, look: bool = True) -> Health:
        """How the run is doing, by its engine's own progress.

        Args:
            real: the state that `look` returned.
            look: look at the processes again; False uses the last look.
        """
        if look:
            self._processes = process_states(
                self.state,
                self._supervisor_state(),
                lambda engine: lives(self.run, engine),
                lambda sampler: serves(self.run, sampler, SAMPLER_MODULE),
                self.run.root,
                lambda engine: works_elsewhere(self.run, engine),
                self._here,
                lambda stage, attempt: started_process(self.run.engine_json(stage, attempt)),
            )
            self._concerns = self._own_concerns() if real.is_live else ()
        found = health(self.state, real, Clock.now(time.monotonic() - self._received_s), self._processes)
        return replace(found, concerns=(*found.concerns, *self._concerns)) if self._concerns else found

    def _own_concerns(self) -> tuple[str, ...]:
        """What is not as it should be with the run's files, and with this reader of them."""
        stage = self.state.current_stage
        attempt = stage.current if stage is not None else None
        files = [self.run.journal]
        if stage is not None and attempt is not None:
            files.append(self.run.console_log(stage.name, attempt.attempt))
        large = [(path.name, found) for path in files if (found := size_of(path)) > LARGE_BYTES]
        concerns = [f"{name} has {formatting.size(found)}; nothing limits it" for name, found in large]
        if self._tail.refused:
            concerns.append("too many screens watch this run; this one reads the journal")
        return tuple(concerns)

    def _supervisor_state(self) -> str:
        """The letter of the state in /proc of the process that holds the supervisor's lock; "" when it is not here."""
        if not lock_is_held(self.run.supervisor_lock):
            return ""
        holder = lock_holder(self.run.supervisor_lock)
        try:
            named = Identity(int(holder["pid"]), int(holder["start_time"]), str(holder["boot_id"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return ""
        return named.state() if serves(self.run, named, SUPERVISOR_MODULE) else ""

    def is_live(self) -> bool:
        """Whether a supervisor or an engine of the run is running."""
        if lock_is_held(self.run.supervisor_lock):
            return True
        engines = (w.opened for w in self.state.writers if w.opened and w.opened.role == WriterRole.ENGINE)
        return any(lives(self.run, self._here(e)) for e in engines)

    def _here(self, opened: WriterOpened) -> Identity:
        """The process of an engine's writer; in a container it has another number than here."""
        named = Identity(opened.pid, opened.start_time, opened.boot_id)
        return as_numbered_here(self.run, opened.stage, opened.attempt, named)

    def forget_pages(self) -> None:
        """Free the memory of what was used of the side index."""
        if self._index is not None:
            self._index.forget_pages()

    def close(self) -> None:
        """Close the live stream."""
        self._tail.close()

    def _begin(self) -> None:
        """Start from the side index, if there is one that fits the journals."""
        self._begun = True
        found = load_index(self.run, live=self._live) if self._indexed else None
        if found is not None:
            self._tail.close()
            self._index, self.state, self._tail = found, found.state, found.tail
            self._stored_bytes = self._tail.read_bytes

    def keep_progress(self) -> None:
        """Store what was read so far, even before the journals' end, so that the next reader continues there."""
        least = 1 if self.behind else INDEX_AFTER_BYTES // 4
        if self._indexed and self._tail.read_bytes - self._stored_bytes >= least:
            store_index(self.run, self.state, self._tail)

    def _store(self) -> None:
        if store_index(self.run, self.state, self._tail):
            self._stored_bytes = self._tail.read_bytes
            if self._live:  # a reader that stays: from now on the columns are in the file
                self._begin()
                self._take(self._tail.read())
        else:  # not at this place: try again a little later
            self._stored_bytes += INDEX_AFTER_BYTES // 16

    def _take(self, records: list[Record]) -> list[Record]:
        if records:
            self._received_s = time.monotonic()
        self.state.apply_all([record.event for record in records])
        self.state.unreadable, self.state.unknown = self._tail.bad, self._tail.unknown
        return [record for record in records if self._is_new(record)] if self._given else records

    def _is_new(self, record: Record) -> bool:
        given = self._given.get(record.event.w)
        return given is None or record.event.seq >= given.next or given.is_late(record.event.seq)

    def _restart(self) -> None:
        self._tail.close()
        for writer in self.state.writers:
            given = self._given.get(writer.name)
            if given is None or given.next <= writer.numbers.next:
                self._given[writer.name] = writer.numbers
        self.state, self._tail, self._stored_bytes = RunState(), RunTail(self._place, live=self._live), 0
        self._begin()


def read_now(run: RunDir) -> RunReader:
    """A reader that has read a run's journals once to the end; `look` adds a check of the processes."""
    reader = RunReader(run, indexed=True)
    reader.catch_up()
    reader.finish()
    return reader
