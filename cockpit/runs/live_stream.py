"""The live stream's client: lines of a run's relay, over a Unix socket.

The socket is in a 0700 folder on a short path (a socket's path may have 107 bytes), and its name is a hash of the run
directory. The supervisor's side is `cockpit.supervision.relay`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path


def socket_folder() -> Path | None:
    """A private folder for sockets; None if no folder is private (screens then read only the journal)."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), f"/tmp/cockpit-{os.getuid()}"):  # noqa: S108 - checked below
        if not base:
            continue
        folder = Path(base) / "cockpit" if base == os.environ.get("XDG_RUNTIME_DIR") else Path(base)
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
            private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
            if private and status.st_uid == os.getuid() and len(str(folder)) < 80:
                return folder
    return None


def socket_path(run_root: Path) -> Path | None:
    """The path of the socket on which a run's relay listens."""
    folder = socket_folder()
    name = hashlib.sha256(os.fsencode(run_root.resolve())).hexdigest()[:16]
    return None if folder is None else folder / f"{name}.sock"


REFUSED = b'{"refused":'
"""Begins the only line that a relay sends to a screen for which it has no place."""


class LiveStream:
    """A screen's side: lines from the run's relay, while it is connected.

    Attributes:
        refused: whether the relay had no place for this screen, which then reads only the journal.
    """

    def __init__(self, run_root: Path) -> None:
        self._root = run_root
        self._socket: socket.socket | None = None
        self._rest = b""
        self.refused = False

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def connect(self) -> bool:
        """Connect to the relay; False if there is no relay."""
        if self._socket is not None:
            return True
        path = socket_path(self._root)
        if path is None:
            return False
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            return False
        self._socket, self._rest = client, b""
        return True

    def fileno(self) -> int | None:
        return None if self._socket is None else self._socket.fileno()

    def read_lines(self) -> list[bytes]:
        """Complete lines that have arrived; empty if none have, or the relay has closed."""
        chunks: list[bytes] = []
        while self._socket is not None:
            try:
                chunk = self._socket.recv(262_144)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.close()
                break
            chunks.append(chunk)
        *lines, self._rest = (self._rest + b"".join(chunks)).split(b"\n")
        if lines:
            self.refused = lines[0].startswith(REFUSED)
        return [line for line in lines if line and not line.startswith(REFUSED)]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
