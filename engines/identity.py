"""Which process is this, really: pid + start time + boot id, because a pid alone is reused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """The kernel's id of this boot; "unknown" where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such (living) process.

    A zombie is not living: it has an exit status, and nobody will ever hear from it again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a process may name itself anything
    except OSError:
        return None
    # The command name may hold spaces and parentheses, so count fields from the last ')'.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in {"Z", "X"}:
        return None
    return int(fields[19])


@dataclass(frozen=True)
class Identity:
    """One process of one boot."""

    pid: int
    start_time: int
    boot_id: str

    @staticmethod
    def of(pid: int) -> Identity | None:
        """The identity of a living process, or None."""
        started = start_time(pid)
        return None if started is None else Identity(pid, started, boot_id())

    @staticmethod
    def own() -> Identity:
        """This process."""
        return Identity(os.getpid(), start_time(os.getpid()) or 0, boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still lives; a pid given to another process does not count."""
        return self.pid > 1 and self.boot_id == boot_id() and start_time(self.pid) == self.start_time
