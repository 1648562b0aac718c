"""Whether the screen still has its terminal. A program that ignores SIGHUP is not ended when its terminal goes away."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress

CHECK_S = 2.0


def terminal() -> int | None:
    """The descriptor of the terminal that the screen is drawn on; None if it is drawn on something else."""
    with suppress(OSError, ValueError, AttributeError):
        fd = sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
        if os.isatty(fd):
            return fd
    return None


def is_gone(fd: int) -> bool:
    """Whether the terminal was closed at its other end."""
    waiting = select.poll()
    waiting.register(fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in waiting.poll(0))
