"""A program in its own process on a pseudo-terminal: its output, its timing and its use of CPU and memory."""

from __future__ import annotations

import fcntl
import os
import pty
import re
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
from rich.cells import cell_len

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SHOW_RUN = (
    "import sys; from pathlib import Path; from cockpit.tui.app import CockpitApp; "
    "run = Path(sys.argv[1]); CockpitApp(run.parent, open_run=run).run()"
)


_PIECE = re.compile(
    r"\x1b\[(\d*);?(\d*)H|\x1b\[(\d+)C|\x1b\[([0-9;]*)m|\x1b\[[?>=<0-9;]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]|([\n\r])|(.)",
    re.DOTALL,
)


class Grid:
    """The cells of a terminal: it understands moves, colours and characters, and skips every other sequence."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self.cells = {(y, x): (" ", "") for y in range(self.height) for x in range(self.width)}
        self.x = self.y = 0
        self.style = ""

    def write(self, sequence: str) -> None:
        """What a program wrote."""
        for found in _PIECE.finditer(sequence):
            row, column, right, style, line_end, character = found.groups()
            if row is not None:
                self.y, self.x = int(row or 1) - 1, int(column or 1) - 1
            elif right is not None:
                self.x += int(right)
            elif style is not None:
                self.style = _styled(self.style, style)
            elif line_end is not None:
                self.x, self.y = 0, self.y + (line_end == "\n")
            elif character is not None:
                self._put(character)

    def __contains__(self, words: str) -> bool:
        rows = ("".join(self.cells[y, x][0] for x in range(self.width)) for y in range(self.height))
        return any(words in row for row in rows)

    def _put(self, character: str) -> None:
        cells = cell_len(character)
        if not cells:
            text, drawn = self.cells.get((self.y, self.x - 1), ("", ""))
            self.cells[self.y, self.x - 1] = (text + character, drawn)
        for offset in range(cells):
            self.cells[self.y, self.x + offset] = (character if offset == 0 else "", self.style)
        self.x += cells


def _styled(before: str, codes: str) -> str:
    """The attributes, foreground and background after a sequence of codes, in a form that is equal for equal looks."""
    attributes, foreground, background = before.split("|") if before else ("", "", "")
    parts = codes.split(";") if codes else ["0"]
    at = 0
    while at < len(parts):
        length = {"2": 5, "5": 3}.get(parts[at + 1], 1) if parts[at] in {"38", "48"} else 1
        code = ";".join(parts[at : at + length])
        if parts[at] == "0":
            attributes, foreground, background = "", "", ""
        elif parts[at] in {"39", "49"}:
            foreground, background = ("", background) if parts[at] == "39" else (foreground, "")
        elif parts[at] == "38" or (parts[at][0] in "39" and len(parts[at]) == 2):
            foreground = code
        elif parts[at] == "48" or (parts[at][0] in "41" and len(parts[at]) >= 2):
            background = code
        else:
            attributes += f"{code},"
        at += length
    return f"{attributes}|{foreground}|{background}" if attributes or foreground or background else ""


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
        self._grid = Grid(size)
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

    def read_until_shown(self, words: str) -> int:
        """Read until a row of the screen contains `words`; returns the number of bytes."""
        read, end = 0, time.monotonic() + PATIENCE_S
        while words not in self._grid:
            assert time.monotonic() < end, f"{words!r} was never shown"
            read += len(self._read(0.2))
        return read

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
            out = os.read(self._leader, 65_536)
        except OSError:  # the other end is closed
            return b""
        self._grid.write(out.decode("utf-8", "ignore"))
        return out


def show_run(run: Path, size: tuple[int, int] = (160, 48), **environment: str) -> Terminal:
    """The run's screen on its own terminal."""
    return Terminal([sys.executable, "-c", SHOW_RUN, str(run)], size, COCKPIT_THEME="cockpit", **environment)
