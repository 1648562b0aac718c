"""The cockpit in a process of its own on a pseudo-terminal, and the bytes it sends there."""

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

CODE = (
    "import sys; from pathlib import Path; from cockpit.tui.app import CockpitApp; "
    "run = Path(sys.argv[1]); CockpitApp(run.parent, open_run=run).run()"
)
PATIENCE_S = 60.0


class TerminalRun:
    """Opens a run directory on a terminal of the given size."""

    def __init__(self, run: Path, size: tuple[int, int] = (160, 48)) -> None:
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "COCKPIT_THEME": "cockpit",
            "PYTHONPATH": str(Path.cwd()),
        }
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # the terminal's own size and colours count
            environment.pop(name, None)
        self._leader = leader
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, str(run)],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
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
        """Type."""
        os.write(self._leader, keys)

    def read_until(self, wanted: bytes) -> bytes:
        """Everything up to and with some bytes; AssertionError when they do not come."""
        out, end = b"", time.monotonic() + PATIENCE_S
        while wanted not in out:
            assert time.monotonic() < end, f"{wanted!r} did not come; got {out[-2000:]!r}"
            out += self._read(0.2)
        return out

    def read_until_quiet(self, quiet_s: float = 1.0) -> bytes:
        """Everything until nothing came for a while."""
        out, end = b"", time.monotonic() + PATIENCE_S
        while chunk := self._read(quiet_s):
            assert time.monotonic() < end, "never quiet"
            out += chunk
        return out

    def _read(self, timeout_s: float) -> bytes:
        if not select.select([self._leader], [], [], timeout_s)[0]:
            return b""
        try:
            return os.read(self._leader, 65_536)
        except OSError:  # the other end is closed
            return b""
