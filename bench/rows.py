"""A measured figure, and how it is measured: the best of several, because noise only adds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

BEST_OF = 5


@dataclass(frozen=True)
class Row:
    """One figure: name, value, unit, and how it was measured."""

    name: str
    value: float
    unit: str
    how: str


def best(measure: Callable[[], float], *, times: int = BEST_OF, highest: bool = False) -> float:
    """The best of several measurements: the lowest, or the highest for rates."""
    values = [measure() for _ in range(times)]
    return max(values) if highest else min(values)


def cpu_s(action: Callable[[], object]) -> float:
    """CPU seconds that an action takes in this process."""
    began = time.process_time()
    action()
    return time.process_time() - began


def child_cpu_s(argv: list[str], environment: dict[str, str] | None = None) -> float:
    """CPU seconds (user and system) of a child process, from start to exit."""
    pid = os.posix_spawn(
        argv[0],
        argv,
        environment or dict(os.environ),
        file_actions=[(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)],
    )
    _, status, usage = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime
