"""Locks of a run's processes: who holds one, and whether it is held."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.files import open_regular
from engines.json_text import read_json


class Lock:
    """An flock that records its holder. The process *and its forks* hold it until the last of them ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, holder: dict[str, Any]) -> bool:
        """Take the lock without waiting, and record the holder. False when another process holds it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not _flocked(fd):
            os.close(fd)
            return False
        self._fd = fd
        with suppress(OSError):  # a full disk must not prevent supervision
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(holder).encode(), 0)
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _flocked(fd: int) -> bool:
    """Take an exclusive flock; False if another process holds one. A process that only looks holds it for a moment."""
    while True:
        if _flock(fd, fcntl.LOCK_EX):
            return True
        if not _flock(fd, fcntl.LOCK_SH):  # succeeds beside `lock_is_held`, not beside a holder
            return False


def _flock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_is_held(path: Path) -> bool:
    """Whether a process holds the lock now. Taking and dropping it is the only reliable check; it writes nothing."""
    try:
        file = open_regular(path, follow=False)
    except OSError:
        return False
    with file:
        return not _flock(file.fileno(), fcntl.LOCK_SH)


def lock_holder(path: Path) -> dict[str, Any]:
    """What the last holder recorded about itself; empty when unreadable."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
