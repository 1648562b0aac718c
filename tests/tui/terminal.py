"""A program in its own process on a pseudo-terminal: its output, its timing and its use of CPU and memory."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SHOW_RUN = (
    "import sys; from pathlib import Path; from cockpit.tui.app import CockpitApp; "
    "run = Path(sys.argv[1]); CockpitApp(run.parent, open_run=run).run()"
)


class Terminal:
    """Runs argv on a terminal of the given size, columns by rows, and reads all its output."""

    def __init__(self, argv: list[str], size: tuple[int, int], **environment: str) -> None:
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        of_program = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **environment}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "PYTHONDONTWRITEBYTECODE"):  # the terminal's own size and colours
            of_program.pop(name, None)
        self.began_s = time.monotonic()
        self._leader = leader
        self._process = subprocess.Popen(
            argv, stdin=follower, stdout=follower, stderr=follower, env=of_program, start_new_session=True, cwd=ROOT
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

    def press(self, keys: bytes) -> None:
        """Send keys."""
        os.write(self._leader, keys)

    def read_until(self, wanted: bytes) -> bytes:
        """All output up to and including `wanted`; raises AssertionError when it does not arrive."""
        out, end = b"", time.monotonic() + PATIENCE_S
        while wanted not in out:
            assert time.monotonic() < end, f"{wanted!r} did not arrive; got {out[-2000:]!r}"
            out += self._read(0.2)
        return out

    def read_until_quiet(self, quiet_s: float = 1.0) -> bytes:
        """All output until none arrives for `quiet_s` seconds."""
        out, end = b"", time.monotonic() + PATIENCE_S
        while chunk := self._read(quiet_s):
            assert time.monotonic() < end, "never quiet"
            out += chunk
        return out

    def seconds_until(self, wanted: bytes) -> float:
        """Seconds from the program's start until `wanted` arrives."""
        self.read_until(wanted)
        return time.monotonic() - self.began_s

    def drain(self, seconds: float) -> int:
        """The number of bytes that arrive within `seconds`."""
        end, total = time.monotonic() + seconds, 0
        while (left := end - time.monotonic()) > 0:
            total += len(self._read(left))
        return total

    def cpu_s(self) -> float:
        """CPU seconds used so far, user and system."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def _read(self, timeout_s: float) -> bytes:
        if not select.select([self._leader], [], [], timeout_s)[0]:
            return b""
        try:
            return os.read(self._leader, 65_536)
        except OSError:  # the other end is closed
            return b""


def show_run(run: Path, size: tuple[int, int] = (160, 48), **environment: str) -> Terminal:
    """The run's screen on its own terminal."""
    return Terminal([sys.executable, "-c", SHOW_RUN, str(run)], size, COCKPIT_THEME="cockpit", **environment)
