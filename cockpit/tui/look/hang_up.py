"""The end of a screen by a signal, or with its terminal.

A program that ignores SIGHUP is not ended when its terminal goes away. One that is ended by a signal's default action
leaves a terminal that stays in raw mode, shows the dead screen, and receives a report of every move of the mouse.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections.abc import Callable
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


def on_signals(end: Callable[[], None]) -> None:
    """Call `end` in the running loop on SIGTERM and SIGHUP, unless they are ignored."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            loop.add_signal_handler(number, end)
