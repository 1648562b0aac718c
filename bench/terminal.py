"""A program on a pseudo-terminal: when it first paints, what it sends, how much memory it holds."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 30.0


class Terminal:
    """Runs argv on a terminal of the given size and reads everything it sends."""

    def __init__(self, argv: list[str], size: tuple[int, int]) -> None:
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "PYTHONDONTWRITEBYTECODE"):
            environment.pop(name, None)
        self.began_s = time.monotonic()
        self._leader = leader
        self._process = subprocess.Popen(
            argv, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True, cwd=ROOT
        )
        os.close(follower)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._leader)

    def until(self, wanted: bytes) -> float:
        """Seconds from the start until some bytes have come.

        Raises:
            RuntimeError: they never do.
        """
        seen = b""
        while wanted not in seen:
            if time.monotonic() - self.began_s > ANSWER_S:
                raise RuntimeError(f"{wanted!r} was never painted; got {seen[-300:]!r}")
            seen += self._read(0.5)
        return time.monotonic() - self.began_s

    def drain(self, seconds: float) -> int:
        """Bytes that come within some seconds."""
        end, total = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0:
            total += len(self._read(left))
        return total

    def cpu_s(self) -> float:
        """CPU seconds used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def _read(self, timeout_s: float) -> bytes:
        if not select.select([self._leader], [], [], timeout_s)[0]:
            return b""
        try:
            return os.read(self._leader, 1 << 16)
        except OSError:
            return b""
