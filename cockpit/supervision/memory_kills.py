"""Whether the kernel killed an engine because memory ran out: its counters before and after.

SIGKILL has no sender, and any process of the user can send it. The kernel counts its own kills for memory: of each
control group (`memory.events` of cgroup v2, `memory.oom_control` of v1), and of the whole machine (`/proc/vmstat`). Its
log names the process, but is rarely readable.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from engines.exhausted_memory import in_output
from engines.files import open_regular
from engines.words import MemoryEnd

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
MAX_BYTES = 1 << 16
LAST_BYTES = 1 << 13
_COUNT_FILES = frozenset({"memory.events", "memory.oom_control"})
_COUNT = re.compile(r"^oom_kill (\d{1,18})$", re.MULTILINE)


@dataclass(frozen=True)
class MemoryKills:
    """The kernel's counts at one moment: of each file of the process's control groups, and of the machine.

    A count is missing where the kernel does not show it.
    """

    groups: Mapping[str, int] = field(default_factory=dict)
    machine: int | None = None

    @staticmethod
    def read(pid: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> MemoryKills:
        """The counts for a process; its own folders in /proc and /sys decide which groups those are."""
        counted = ((str(file), count) for file in _files(pid, proc, cgroups) if (count := _count(file)) is not None)
        innermost = next(counted, None)  # an outer group counts the kills of other processes too
        return MemoryKills(dict([innermost] if innermost else []), _count(proc / "vmstat"))

    @staticmethod
    def of_groups(value: object, cgroups: Path = CGROUPS) -> MemoryKills:
        """The counts of groups as the engine's file has them, for a supervisor that finds the engine dead; else empty.

        The machine's count is not among them: since then, the kernel may have killed a process of another user.
        """
        known = value.items() if isinstance(value, dict) else ()
        return MemoryKills({file: n for file, n in known if type(n) is int and _is_count_file(file, cgroups)})

    def again(self, proc: Path = PROC) -> MemoryKills:
        """The present counts of the same groups; the process may have ended."""
        groups = {file: count for file in self.groups if (count := _count(Path(file))) is not None}
        return MemoryKills(groups, _count(proc / "vmstat"))


def memory_end(before: MemoryKills, status: int | None, console: Path, *, killed_by_us: bool) -> tuple[MemoryEnd, str]:
    """Whether an engine that recorded no reason ran out of memory, and the evidence.

    Args:
        before: the counts at its start, or when it was adopted.
        status: its exit status, negative for a signal; None if another process was its parent.
        console: its output, whose end has the words of a C++ abort.
        killed_by_us: the supervisor itself sent SIGKILL.
    """
    if status in {None, -signal.SIGABRT} and (which := in_output(_end_of(console))):
        found = MemoryEnd.PROBABLE if status is None else MemoryEnd.PROVEN
        return found, f"out of memory: {which}; see console.log"
    if killed_by_us or status not in {None, -signal.SIGKILL}:
        return MemoryEnd.UNKNOWN, ""
    found, evidence = judge(before, before.again())
    if status is None and found == MemoryEnd.PROVEN:
        return MemoryEnd.PROBABLE, f"probably for memory: {evidence}"
    return found, evidence


def judge(before: MemoryKills, after: MemoryKills) -> tuple[MemoryEnd, str]:
    """Whether a process that SIGKILL ended between two readings was killed for memory, and the evidence."""
    for file, count in after.groups.items():
        if count > before.groups.get(file, count):
            return (
                MemoryEnd.PROVEN,
                f"the kernel killed it for memory: oom_kill {before.groups[file]} → {count} in {file}",
            )
    if before.machine is not None and after.machine is not None and after.machine > before.machine:
        words = f"oom_kill {before.machine} → {after.machine} in /proc/vmstat"
        return MemoryEnd.PROBABLE, f"probably for memory: the kernel killed a process of this machine ({words})"
    return MemoryEnd.UNKNOWN, ""


def _files(pid: int, proc: Path, cgroups: Path) -> list[Path]:
    """The files that may count the kills of a process's control groups; the innermost group first."""
    found: list[Path] = []
    for line in _text(proc / str(pid) / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if ".." in group.split("/"):  # a group outside this namespace
            group = "/"
        if not controllers:
            found += [cgroups / group.strip("/") / "memory.events", cgroups / "memory.events"]
        elif "memory" in controllers.split(","):
            own = cgroups / "memory"
            found += [own / group.strip("/") / "memory.oom_control", own / "memory.oom_control"]
    return list(dict.fromkeys(found))


def _is_count_file(file: str, cgroups: Path) -> bool:
    path = Path(file)
    return path.is_relative_to(cgroups) and ".." not in path.parts and path.name in _COUNT_FILES


def _end_of(file: Path) -> str:
    with suppress(OSError), open_regular(file) as stream:
        stream.seek(max(0, file.stat().st_size - LAST_BYTES))
        return stream.read(LAST_BYTES).decode(errors="replace")
    return ""


def _count(file: Path) -> int | None:
    found = _COUNT.search(_text(file))
    return None if found is None else int(found[1])


def _text(file: Path) -> str:
    with suppress(OSError), file.open("rb") as stream:
        return stream.read(MAX_BYTES).decode(errors="replace")
    return ""
