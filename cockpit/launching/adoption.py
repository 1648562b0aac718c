"""Adoption: which observers of a run start a supervisor for it, and when.

When a supervisor dies, its engine continues, but no process starts the next stage. Screens and commands that follow the
run notice this and start another supervisor, which adopts the run. Only this module decides whether an observer starts
a process: `standing` says what a run lacks, `reason_to_start` decides, `adopt` acts, and only for a trusted run.

Looking never acts: a run that is lost stays lost until it is resumed. A run is adopted if its engine lives, or if the
observer itself has seen it alive and its supervisor died between two stages, so that nothing was lost.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from cockpit.launching.start import start_supervisor
from cockpit.provenance.trust import why_untrusted
from cockpit.runs.index_store import index_path
from cockpit.runs.reader import is_young
from cockpit.runs.summaries import JournalSize, stored_summary
from cockpit.schedule.facts import RunFacts, read_facts
from cockpit.text import formatting
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason
from recipes.problems import OperatorError

ATTEMPTS = 5
"""Supervisors that a follower starts one after another without any progress, before it gives up."""


class Standing(Enum):
    """What holds a run together at this moment, by its lock, its journal and its processes."""

    SUPERVISED = "a supervisor holds the lock"
    ENDED = "the journal has the end of the run"
    QUEUED = "it was created just now, and no supervisor has written yet"
    ENGINE_LIVES = "an engine runs without a supervisor"
    BETWEEN_STAGES = "no supervisor, and every engine that began has recorded its own end"
    ELSEWHERE = "the run's processes are on another machine, so this one cannot see them"
    LOST = "no process of the run is alive, and an engine ended without recording it"

    @property
    def is_lost(self) -> bool:
        """Whether the run is lost for an observer that has not seen it alive."""
        return self in {Standing.LOST, Standing.BETWEEN_STAGES}


_AT_REST = {Standing.ENDED, Standing.BETWEEN_STAGES, Standing.LOST}


@dataclass(frozen=True)
class Onlooker:
    """A kind of observer of a run.

    Attributes:
        name: a short description.
        may_start: whether it may start a supervisor for a run that has none and has not ended.
        every_s: seconds between two of its checks; infinite if it checks once.
        trusts_exit_json: whether an existing `exit.json` is enough to treat the run as ended.
    """

    name: str
    may_start: bool
    every_s: float = math.inf
    trusts_exit_json: bool = False


LONG_READ_BYTES = 16 << 20
"""Reading a journal of this size takes about a second."""
ATTACH = Onlooker("cockpit attach", may_start=True)
FOLLOWER = Onlooker("a follower without a screen: run, resume, attach, stop", may_start=True, every_s=2.0)
SCREEN = Onlooker("the screen of a run", may_start=True, every_s=5.0, trusts_exit_json=True)
REQUEST = Onlooker("a request to the engine, from a key or a command", may_start=True)


def standing(run: RunDir) -> Standing:
    """What holds a run together now.

    The journal is read after the lock was found free: then it has the end that a supervisor wrote. A run with an
    `exit.json` of the journals' present size has ended, and its journal is not read.
    """
    if lock_is_held(run.supervisor_lock):
        return Standing.SUPERVISED
    stored = stored_summary(run, JournalSize.of(run))
    if stored is not None and stored.state.has_ended:
        return Standing.ENDED
    return _unsupervised(run, read_facts(run))


def _unsupervised(run: RunDir, facts: RunFacts) -> Standing:
    if facts.has_ended:
        return Standing.ENDED
    left = [
        (name, attempt) for name, stage in facts.stages.items() for attempt in stage.attempts.values()
        if not attempt.reason
    ]  # fmt: skip
    # One search for marked processes comes first: a journal may name any number of attempts.
    if left and _has_processes(run) and any(_finds_engine(run, name, attempt.number) for name, attempt in left):
        return Standing.ENGINE_LIVES
    if facts.latest_start is None:
        return Standing.QUEUED if is_young(run) else Standing.LOST
    if facts.host not in {"", socket.gethostname()}:
        return Standing.ELSEWHERE
    began = any(attempt.started is not None or attempt.opened is not None for _, attempt in left)
    return Standing.LOST if began else Standing.BETWEEN_STAGES


def _has_processes(run: RunDir) -> bool:
    from cockpit.supervision.process_tree import run_processes

    return bool(run_processes(run.root, []))


def _finds_engine(run: RunDir, stage: str, attempt: int) -> bool:
    from cockpit.supervision.engine_process import find_engine

    engine = find_engine(run, stage, attempt)
    if engine is not None:
        engine.close()
    return engine is not None


def reason_to_start(found: Standing, *, seen_alive: bool) -> StartReason | None:
    """Why an observer starts a supervisor now; None if it does not.

    Args:
        found: what holds the run together.
        seen_alive: whether this observer itself saw a process of the run before.
    """
    if found is Standing.ENGINE_LIVES or (found is Standing.BETWEEN_STAGES and seen_alive):
        return StartReason.ADOPT
    return None


class Observer:
    """One observer of a run, which remembers whether it has seen the run alive.

    Attributes:
        found: what held the run together at its last look.
        refusal: why no supervisor was started although the run needed one; empty otherwise.
    """

    def __init__(self, run: RunDir, onlooker: Onlooker) -> None:
        self.found: Standing | None = None
        self.refusal = ""
        self._run = run
        self._onlooker = onlooker
        self._seen_alive = False
        self._read: JournalSize | None = None

    @property
    def refused(self) -> str:
        """A sentence about the refusal; empty without one."""
        return f"{self._run.id} is read-only: {self.refusal}; no supervisor is started" if self.refusal else ""

    @property
    def sees_it_lost(self) -> bool:
        """Whether the run was lost at the last look, so that only a resume continues it."""
        return self.found is not None and self.found.is_lost

    def adopt(self) -> bool:
        """Look, and start a supervisor if there is a reason to and the run is trusted; True if one was started.

        Raises:
            RunDirError: the run needs a supervisor and has a newer format, or its `run.json` cannot be read.
        """
        if self._onlooker.trusts_exit_json and self._run.exit_json.exists():
            return False
        self.found = self._look()
        reason = reason_to_start(self.found, seen_alive=self._seen_alive) if self._onlooker.may_start else None
        self._seen_alive |= self.found in {Standing.SUPERVISED, Standing.ENGINE_LIVES}
        self.refusal = "" if reason is None else why_untrusted(self._run)
        if reason is None or self.refusal:
            return False
        self._run.require_writable_format()
        with suppress(OperatorError):  # another observer was faster
            start_supervisor(self._run, reason)
            self.found = Standing.SUPERVISED
            return True
        return False

    def _look(self) -> Standing:
        """Look again; a run without processes whose journal has not changed is what it was."""
        size = JournalSize.of(self._run)
        if self.found in _AT_REST and size == self._read and not lock_is_held(self._run.supervisor_lock):
            return self.found
        self._read = size
        return standing(self._run)


def end_of(run: RunDir) -> RunStatus | None:
    """The state in which the run has ended; None while it has not.

    The files that say so are asked first, the journal only if they do not decide: `exit.json` of the journals' present
    size, then the supervisor's lock.
    """
    stored = stored_summary(run, JournalSize.of(run))
    if stored is not None and stored.state.has_ended:
        return stored.state
    if lock_is_held(run.supervisor_lock):
        return None
    facts = read_facts(run)
    return facts.ended.state if facts.ended is not None and facts.has_ended else None


def reading_words(run: RunDir) -> str:
    """What has to be read before a request to the run is answered, if that takes a noticeable time; else empty.

    Only a run without a supervisor and without an `exit.json` is asked of its journal, which a side index shortens.
    """
    size = JournalSize.of(run)
    if size.total_bytes < LONG_READ_BYTES or lock_is_held(run.supervisor_lock) or stored_summary(run, size) is not None:
        return ""
    index = index_path(run)
    if index is not None and index.exists():
        return ""
    return f"{run.id}: no supervisor is running; reading {formatting.size(size.total_bytes)} of journal"


def adopt(run: RunDir, onlooker: Onlooker) -> bool:
    """One look of an observer that has not seen the run before; errors and result of `Observer.adopt`."""
    return Observer(run, onlooker).adopt()


class Keeper:
    """Keeps a run supervised while it is followed, and gives up after `ATTEMPTS` supervisors without progress.

    Args:
        run: the run.
        onlooker: the observer that follows; it has an interval.
        clock: monotonic seconds.

    Attributes:
        lost: whether the run was found lost, or was never started: nothing will happen until it is resumed.
    """

    def __init__(self, run: RunDir, onlooker: Onlooker, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost = False
        self._run = run
        self._onlooker = onlooker
        self._observer = Observer(run, onlooker)
        self._clock = clock
        self._due_s = clock() + self._onlooker.every_s
        self._attempts = 0
        self._worked = False

    @property
    def refused(self) -> str:
        """A sentence that says why the run gets no supervisor; empty if it has one or needs none."""
        return self._observer.refused

    def note_work(self) -> None:
        """Note that an attempt of the run wrote a record."""
        self._worked = True

    def look(self, *, ended: bool) -> None:
        """Check, if it is time, and adopt if needed. `ended`: whether the run has ended, by the records read so far.

        Raises:
            OperatorError: none of the supervisors that were started made progress.
        """
        if self._clock() < self._due_s:
            return
        self._due_s = self._clock() + self._onlooker.every_s
        if ended:
            return
        started = self._observer.adopt()
        found = self._observer.found
        if started:
            self._attempts += 1
            self._worked = False
        elif found is Standing.SUPERVISED:  # the supervisor lives; has its engine made progress?
            self._attempts = 0 if self._worked else self._attempts
        self.lost = self._observer.sees_it_lost
        if self._attempts > ATTEMPTS:
            hint = f"see {self._run.supervisor_log}; then: cockpit resume {self._run.id}"
            raise OperatorError(f"{self._run.id} has no supervisor, and none could be started", hint)
