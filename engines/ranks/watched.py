"""How the processes of an attempt ended: their exit statuses, in the order in which they ended.

torchrun waits for its processes itself, so this looks at an ended one without taking its status from torchrun.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engines.files import write_durably
from engines.json_text import read_json
from engines.ranks.children import children_of, rank_of

PEERS_S = 5.0
"""How long the others have to end after one has failed."""
LATE_S = 20.0
"""How long the others have after the first process of the host has ended: it writes the result and is the last one."""
LOOK_S = 0.05
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class RankEnd:
    """The end of one process.

    Attributes:
        rank: its number.
        pid: its process id on its host.
        status: its exit status, negative for a signal; None if torchrun took it first.
        ended_by_us: it was killed because another one had ended.
    """

    rank: int
    pid: int
    status: int | None
    ended_by_us: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, and not with 0."""
        return self.status not in {0, None} and not self.ended_by_us


def read_ends(path: Path) -> list[RankEnd]:
    """The recorded ends, in their order; empty if there is no such file, or it has another form."""
    try:
        value = read_json(path, MAX_BYTES)
        return [
            RankEnd(int(one["rank"]), int(one["pid"]), _status(one["status"]), bool(one["ended_by_us"]))
            for one in value["ends"]
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return []


def read_reason(path: Path) -> str:
    """Why torchrun started nothing; empty if it did, or if nothing is recorded."""
    try:
        return str(read_json(path, MAX_BYTES)["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _status(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class WatchedRanks:
    """The processes that torchrun has started, which are children of this process.

    Args:
        path: the file that is written.
        number: how many there will be.
    """

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number
        self._ranks: dict[int, int] = {}
        """pidfd of each, and its rank"""
        self._pids: dict[int, int] = {}
        self._ended: list[RankEnd] = []
        self._killed: set[int] = set()
        self._reason = ""
        self._learned: dict[int, int] = {}
        self._kill_at_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def learn(self, statuses: Mapping[int, int]) -> None:
        """Take the exit statuses that torchrun has found, by pid, where it was faster than this thread."""
        self._learned = dict(statuses)

    def finish(self, reason: str = "", *, all_done: bool = False) -> None:
        """Look once more and write the file.

        Args:
            reason: why nothing was started, if so.
            all_done: torchrun found that each process ended with 0; it may have taken a status before this thread did.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._reason = reason
        self._ended = [
            replace(end, status=self._learned.get(end.pid, 0 if all_done else None)) if end.status is None else end
            for end in self._ended
        ]
        self._write()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._find()
            self._look(LOOK_S)
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                self._kill_others()
            if len(self._ended) == self._number:
                return
        self._look(0.0)

    def _find(self) -> None:
        """Take new children as soon as their environment says their rank."""
        if len(self._pids) == self._number:
            return
        for pid in children_of(os.getpid()):
            rank = rank_of(pid)
            if pid in self._pids.values() or rank is None:
                continue
            with suppress(OSError):
                self._ranks[os.pidfd_open(pid)] = rank
                self._pids[rank] = pid

    def _look(self, timeout_s: float) -> None:
        if not self._ranks:
            time.sleep(timeout_s)
            return
        readable, _, _ = select.select(list(self._ranks), [], [], timeout_s)
        for fd in readable:
            rank = self._ranks.pop(fd)
            status = _status_of(fd)
            os.close(fd)
            self._note(RankEnd(rank, self._pids[rank], status, rank in self._killed))

    def _note(self, end: RankEnd) -> None:
        self._ended.append(end)
        first = min(self._pids)
        if end.failed or end.rank == first:
            wait_s = PEERS_S if end.failed else LATE_S
            at_s = time.monotonic() + wait_s
            self._kill_at_s = at_s if self._kill_at_s is None else min(self._kill_at_s, at_s)
        if end.failed:
            self._write()

    def _kill_others(self) -> None:
        for fd, rank in self._ranks.items():
            self._killed.add(rank)
            with suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)

    def _write(self) -> None:
        content = {"ends": [asdict(end) for end in self._ended], "reason": self._reason}
        with suppress(OSError):  # a full disk: the supervisor has torchrun's exit status
            write_durably(self._path, json.dumps(content).encode())


def _status_of(fd: int) -> int | None:
    """The exit status of an ended child, which stays for torchrun to take; None if it has taken it."""
    try:
        info = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except OSError:
        return None
    if info is None:
        return None
    return int(info.si_status) if info.si_code == os.CLD_EXITED else -int(info.si_status)
