"""Ending all processes of a run, and no others.

Workers may have their own sessions (torchrun gives each one), so a process group does not cover them. A process belongs
to the run if it has the same user and the run's mark in its environment, or if it descends from such a process. What
the run's files say about processes does not count.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cockpit.provenance.mark import RunMark
from engines.identity import Identity, boot_id, stat_fields
from engines.run_dir.paths import RunDir

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Make orphaned grandchildren children of this process, so that it can find and reap them (Linux)."""
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    return False


def run_processes(run_root: Path, roots: list[Identity]) -> list[Identity]:
    """Living processes of the run: those with its mark, `roots` that are children of this process, and descendants.

    Never pid 1, this process or its ancestors, and no marked process of another user.
    """
    table, marked = _process_table(run_root)
    parents = {pid: parent for pid, (parent, _) in table.items()}
    ours = {root.pid for root in roots if parents.get(root.pid) == os.getpid() and root.is_alive()} | marked
    grew = True
    while grew:
        grew = False
        for pid, parent in parents.items():
            if parent in ours and pid not in ours:
                ours.add(pid)
                grew = True
    ours -= {0, 1} | _self_and_ancestors(parents)
    # The start times were read before the marks: a process that reuses a pid since then is never signalled.
    return [Identity(pid, table[pid][1], boot_id()) for pid in sorted(ours) if pid in table]


def carries_mark(pid: int, run_root: Path) -> bool:
    """Whether a process is this user's and has the run's mark."""
    return RunMark.of(RunDir(run_root)).is_carried_by(pid)


def signal_process(target: Identity, number: int) -> bool:
    """Signal exactly this process: a pidfd protects a process that reuses the pid. False if it has ended."""
    try:
        fd = os.pidfd_open(target.pid)
    except OSError:
        return False
    try:
        if not target.is_alive():  # checked while the pidfd is open: from now on it cannot be another process
            return False
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def kill_tree(
    run_root: Path,
    roots: list[Identity],
    *,
    term_grace_s: float,
    keep: frozenset[int] = frozenset(),
    wait: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Send TERM, then KILL, to all processes of the run until two scans in a row find none.

    Args:
        run_root: the run directory, with which its processes are marked.
        roots: engines that this process started.
        term_grace_s: seconds between the two signals; 0 sends KILL alone.
        keep: children whose exit status the caller collects.
        wait: waits for a number of seconds.

    Returns:
        pids that are left; empty unless a process is stuck in the kernel.
    """
    deadline_s = time.monotonic() + term_grace_s
    for target in run_processes(run_root, roots) if term_grace_s else ():
        signal_process(target, signal.SIGTERM)
    while time.monotonic() < deadline_s and run_processes(run_root, roots):
        reap_children(keep)
        wait(0.05)
    empty_looks, give_up_s = 0, time.monotonic() + 15.0
    while empty_looks < 2 and time.monotonic() < give_up_s:
        left = run_processes(run_root, roots)
        empty_looks = 0 if left else empty_looks + 1
        for target in left:
            signal_process(target, signal.SIGKILL)
        reap_children(keep)
        wait(0.05)
    return [target.pid for target in run_processes(run_root, roots)]


def reap_children(keep: frozenset[int] = frozenset()) -> dict[int, int]:
    """Collect the exit statuses of ended children, except those in `keep`; negative for a signal."""
    statuses: dict[int, int] = {}
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return statuses
        if info is None or info.si_pid in keep:
            return statuses
        pid, status = os.waitpid(info.si_pid, os.WNOHANG)
        if pid:
            statuses[pid] = os.waitstatus_to_exitcode(status)


def _process_table(run_root: Path) -> tuple[dict[int, tuple[int, int]], set[int]]:
    """Parent and start time of each living process, and the processes of this user that have the run's mark."""
    table: dict[int, tuple[int, int]] = {}
    marked: set[int] = set()
    mark, uid = RunMark.of(RunDir(run_root)), os.getuid()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with suppress(OSError, ValueError, IndexError):
            fields = stat_fields(pid)
            if fields is None:
                continue
            table[pid] = int(fields[1]), int(fields[19])
            if entry.stat().st_uid == uid and mark.is_carried_by(pid):
                marked.add(pid)
    return table, marked


def _self_and_ancestors(parents: dict[int, int]) -> set[int]:
    pid, found = os.getpid(), set()
    while pid and pid not in found:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


__all__ = ["become_subreaper", "kill_tree", "reap_children", "run_processes", "signal_process"]
