"""Adoption: which observers of a run start a supervisor for it, and when.

When a supervisor dies, its engine continues, but no process starts the next stage. Screens and commands that follow the
run notice this and start another supervisor, which adopts the run. Only this module decides whether an observer starts
a process: a row below says what each kind of observer may do, `reason_to_start` decides, `adopt` acts. Lists, `show`
and `replay` have no row: they start nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cockpit.launching.start import start_supervisor
from cockpit.runs.summaries import JournalSize, stored_summary
from cockpit.schedule.facts import RunFacts, read_facts
from engines.run_dir import RunDir, lock_is_held
from engines.words import RunStatus, StartReason
from recipes.problems import OperatorError

ATTEMPTS = 5
"""Supervisors that a follower starts one after another without any progress, before it gives up."""


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


ATTACH = Onlooker("cockpit attach", may_start=True)
FOLLOWER = Onlooker("a follower without a screen: run, resume, attach, stop", may_start=True, every_s=2.0)
SCREEN = Onlooker("the screen of a run", may_start=True, every_s=5.0, trusts_exit_json=True)
REQUEST = Onlooker("a request to the engine, from a key or a command", may_start=True)


def reason_to_start(
    onlooker: Onlooker, *, supervised: bool, exit_written: bool, facts: Callable[[], RunFacts]
) -> StartReason | None:
    """Why this observer starts a supervisor now; None if it does not.

    Args:
        onlooker: the observer.
        supervised: whether a supervisor holds the run's lock.
        exit_written: whether the run has an `exit.json`.
        facts: reads the run's facts from the journal; called only if they are needed.
    """
    if not onlooker.may_start or supervised or (exit_written and onlooker.trusts_exit_json):
        return None
    found = facts()
    if found.has_ended:
        return None
    return StartReason.ADOPT if found.latest_start else StartReason.LAUNCH


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


def adopt(run: RunDir, onlooker: Onlooker) -> bool:
    """Start a supervisor for the run if this observer has a reason to; True if one was started.

    Raises:
        RunDirError: the run needs a supervisor and has a newer format, or its `run.json` cannot be read.
    """
    reason = reason_to_start(
        onlooker,
        supervised=lock_is_held(run.supervisor_lock),
        exit_written=run.exit_json.exists(),
        facts=lambda: read_facts(run),
    )
    if reason is None:
        return False
    run.require_writable_format()
    with suppress(OperatorError):  # another observer was faster
        start_supervisor(run, reason)
        return True
    return False


class Keeper:
    """Keeps a run supervised while it is followed, and gives up after `ATTEMPTS` supervisors without progress.

    Args:
        run: the run.
        onlooker: the observer that follows; it has an interval.
        clock: monotonic seconds.
    """

    def __init__(self, run: RunDir, onlooker: Onlooker, clock: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._onlooker = onlooker
        self._clock = clock
        self._due_s = clock() + self._onlooker.every_s
        self._attempts = 0
        self._worked = False

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
        if lock_is_held(self._run.supervisor_lock):
            self._attempts = 0 if self._worked else self._attempts  # the supervisor lives, and its engine made progress
            return
        if end_of(self._run) is not None:  # the records read so far lag behind
            return
        adopt(self._run, self._onlooker)
        self._attempts += 1
        self._worked = False
        if self._attempts > ATTEMPTS:
            hint = f"see {self._run.supervisor_log}; then: cockpit resume {self._run.id}"
            raise OperatorError(f"{self._run.id} has no supervisor, and none could be started", hint)
