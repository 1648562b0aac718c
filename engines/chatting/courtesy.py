"""While a run computes on this machine's cores, a chat uses a small share of one of them.

Threads of a training wait for each other several hundred times a second. So each moment in which one of them does not
run delays all of them, and a low priority alone does not bound what a chat costs. A chat therefore rests between two
parts of its work, for as long as its CPU time says.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from engines.chatting.manners import idle_s
from engines.processor import engines_here, spent_s

SHARE = 0.04
"""CPU seconds of a chat for each second beside a run. A training that waits for all of them takes 1 / (1 - SHARE)."""
LOOK_S = 2.0
"""Seconds between two looks at what runs on the machine."""
LOOKS = 3
"""A chat rests for this many looks after the last one that found a run: a training that saves continues soon."""
COMPUTES = 0.05
"""Cores; a run that uses less does not compute."""
MARGIN = 0.5
"""Cores beyond those of the chat that must be free: the machine itself needs some."""
LEAST_REST_S = 0.002
NAP_S = 0.1
"""The longest part of a rest: an answer is stopped between two of them."""


class Courtesy:
    """Watches for runs that compute where no cores are free, and rests for them.

    Args:
        report: takes whether answers are slower because of a run, when that changes.

    Attributes:
        slow: they are.
    """

    def __init__(self, report: Callable[[bool], None]) -> None:
        self._report = report
        self._threads = 1
        self._workers: Callable[[], Iterable[int]] = lambda: (os.getpid(),)
        self._looked_s, self._idle_s = 0.0, 0.0
        self._seen: dict[int, float] = {}
        self._in_the_way: deque[bool] = deque(maxlen=LOOKS)
        self._own: dict[int, float] = {}
        self._rested_s, self._owed_s = time.monotonic(), 0.0
        self.slow = False

    def watch(self) -> None:
        """Look at once, and then in a thread of its own."""
        self.look()
        threading.Thread(target=self._watch, daemon=True).start()

    def answers_with(self, workers: Callable[[], Iterable[int]], threads: int) -> None:
        """Count the CPU time of these processes, which compute with so many threads."""
        self._workers, self._threads = workers, threads

    def look(self) -> None:
        """See whether a run computes, and whether there are cores for both. A run that is new counts as one that does,
        and as one that uses all cores."""
        before_s, self._looked_s = self._looked_s, time.monotonic()
        allowed = os.sched_getaffinity(0)
        spent = _spent(pid for pid in engines_here(ranks=True) if _shares(pid, allowed))
        own = _spent(self._workers())
        idle_before_s, self._idle_s = self._idle_s, idle_s(allowed)
        past_s = self._looked_s - before_s
        new = spent.keys() - self._seen.keys()
        used = sum(time_s - self._seen[pid] for pid, time_s in spent.items() if pid not in new) / past_s
        own_used = sum(time_s - self._seen.get(pid, time_s) for pid, time_s in own.items()) / past_s
        free = (self._idle_s - idle_before_s) / past_s + own_used
        computes = used >= COMPUTES and free < self._threads + MARGIN
        self._seen = spent | own
        self._in_the_way.append(bool(new) or computes)
        slow = any(self._in_the_way)
        if slow != self.slow:
            self.slow = slow
            self._report(slow)

    def rest(self, stopped: Callable[[], bool]) -> None:
        """Wait as long as the CPU time since the last call demands; returns at once where no run is in the way, and
        when the answer is stopped."""
        own = _spent(self._workers())
        used_s = sum(spent - self._own.get(pid, spent) for pid, spent in own.items())
        since_s = time.monotonic() - self._rested_s
        self._owed_s = max(0.0, self._owed_s + used_s / SHARE - since_s) if self.slow else 0.0
        until_s = time.monotonic() + self._owed_s
        if self._owed_s > LEAST_REST_S:
            while self.slow and not stopped() and (left_s := until_s - time.monotonic()) > 0:
                time.sleep(min(left_s, NAP_S))
            self._owed_s = 0.0
        self._rested_s, self._own = time.monotonic(), own

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.look()


def _spent(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of processes; without those that have ended."""
    found = {}
    for pid in pids:
        with suppress(OSError):
            found[pid] = spent_s(pid)
    return found


def _shares(pid: int, allowed: set[int]) -> bool:
    """Whether a process may use one of these processors."""
    try:
        return bool(os.sched_getaffinity(pid) & allowed)
    except OSError:
        return False
