"""Cockpit on a controlling terminal, so that a test can drop the connection or kill the program."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import threading
from contextlib import suppress

from tests.runs.harness import ROOT


class Screen:
    """Cockpit on its own terminal; everything it draws is read, so that it does not block."""

    def __init__(self, *argv: str, columns: int = 100, rows: int = 30) -> None:
        self.drawn = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES=str(rows))
            os.execv(sys.executable, [sys.executable, "-m", "cockpit", *argv])
        self._lock, self._wake = threading.Lock(), os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def has_drawn(self) -> bool:
        """Whether anything has been painted."""
        return len(self.drawn) > 0

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    def hang_up(self) -> None:
        """Close the terminal, as a dropped connection does."""
        self._close()
        self.wait()

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        self._close()

    def _close(self) -> None:
        """Close the terminal once nobody reads from it: its number may be another file's a moment later."""
        reading, writing = self._wake
        os.close(writing)
        self._reader.join()
        os.close(reading)
        os.close(self.master)

    def wait(self) -> None:
        """Collect the exit status."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def suspend(self) -> None:
        """SIGSTOP; returns when the process has stopped and everything that it drew before is in `drawn`."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)
        with self._lock:
            while self._read_what_is_there():
                pass

    def _read(self) -> None:
        with suppress(OSError):
            while self._wake[0] not in select.select([self.master, self._wake[0]], [], [])[0]:
                with self._lock:
                    if self._read_what_is_there() is None:
                        return

    def _read_what_is_there(self) -> bool | None:
        """Read without waiting: whether there was something; None at the end."""
        if not select.select([self.master], [], [], 0)[0]:
            return False
        chunk = os.read(self.master, 65_536)
        self.drawn += chunk
        return True if chunk else None
