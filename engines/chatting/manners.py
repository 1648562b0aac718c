"""What a chat takes of the machine: little, while a training runs, and the first to go when memory is exhausted."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

NICE = 12
"""Weight 70 beside a training's 1,024 (the kernel's sched_prio_to_weight): 6.4 % of a core that both want."""
OOM_SCORE = 500
"""Half of the memory counts as used by this process when the kernel chooses one to kill."""


def give_way(proc: Path = Path("/proc/self")) -> None:
    """Lower this process's priority, for the processor and for memory; those that it starts inherit both.

    Where the kernel groups processes by session (autogroup), a priority counts only among those of the session, and
    the group has one of its own. So the process must lead its session, as the one that starts it arranges.

    As a batch process (SCHED_BATCH), it does not preempt another one when it wakes. It is not an idle one (SCHED_IDLE):
    beside several busy processes, that gets no time at all, and the model is never loaded.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            (proc / "autogroup").write_text(str(NICE))
    with suppress(OSError):
        (proc / "oom_score_adj").write_text(str(OOM_SCORE))


def half_of_the_free(cores: int, load: float) -> int:
    """Half of the cores that a load leaves free, at least one.

    Args:
        cores: physical cores that this process may use.
        load: mean number of processes that run (getloadavg(3), one minute).
    """
    return max(1, int((cores - load) / 2))


def idle_s(processors: Collection[int], stat: Path = Path("/proc/stat")) -> float:
    """Seconds that processors have been idle since the start of the machine (proc(5), stat); 0 where it is unknown."""
    found = 0.0
    with suppress(OSError, ValueError, IndexError):
        for line in stat.read_text(encoding="ascii").splitlines():
            name, *ticks = line.split()
            if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in processors:
                found += (int(ticks[3]) + int(ticks[4])) / os.sysconf("SC_CLK_TCK")
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (proc(5), statm); 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
