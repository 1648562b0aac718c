"""The identity of a process: pid, start time and boot id, because the kernel reuses pids."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """The kernel's id of this boot; "unknown" where the kernel has no such file."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def process_state(pid: int) -> str:
    """The letter of a process's state in /proc: R, S, D, T (stopped by a signal), …; "" without the process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return fields[0] if fields else ""


def start_time(pid: int) -> int | None:
    """Start time of a process, in clock ticks since boot; None when no such process is alive.

    A zombie does not count as alive: it has ended and only its exit status is left.
    """
    fields = stat_fields(pid)
    return None if fields is None else int(fields[19])


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: 1 is the parent's pid, 19 the start time; None as above."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a process may choose any name
    except OSError:
        return None
    # The command name may contain spaces and parentheses, so count fields from the last ')'.
    fields = stat.rpartition(")")[2].split()
    return None if len(fields) < 20 or fields[0] in {"Z", "X"} else fields


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

    def state(self) -> str:
        """The letter of its state in /proc; "" when it has ended or belongs to another boot."""
        return process_state(self.pid) if self.is_alive() else ""

    def is_alive(self) -> bool:
        """Whether this process is still alive; a pid that another process has now does not count."""
        return self.pid > 1 and self.boot_id == boot_id() and start_time(self.pid) == self.start_time
