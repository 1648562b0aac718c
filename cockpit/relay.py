"""The live stream's last hop: the supervisor hands every line of the pipe to each attached screen over a Unix socket.

Bounded per client, and lossy: a slow screen loses lines here and repairs the gap from the journal. Sockets live in a
0700 folder on a short path (a socket's name may have 107 bytes), named by a hash of the run directory.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

CLIENT_BUFFER_BYTES = 1 << 20
REST_BYTES = 1 << 16


def socket_folder() -> Path | None:
    """A private folder for sockets, or None when none can be trusted (screens then follow the journal alone)."""
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
    """Where a run's relay listens."""
    folder = socket_folder()
    name = hashlib.sha256(str(run_root.resolve()).encode()).hexdigest()[:16]
    return None if folder is None else folder / f"{name}.sock"


class Relay:
    """The supervisor's side: reads the pipe, serves the screens. `pump()` never waits."""

    def __init__(self, run_root: Path, fifo: Path) -> None:
        self._clients: dict[socket.socket, bytearray] = {}
        self._path = socket_path(run_root)
        self._server: socket.socket | None = None
        self._pipe: int | None = None
        self._rest = b""
        with suppress(OSError):
            self._pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._discard()
        if self._path is not None:
            self._server = _listen(self._path)

    @property
    def readable(self) -> list[int]:
        """Descriptors whose readiness is worth a pump."""
        return [fd for fd in (self._pipe, self._server.fileno() if self._server else None) if fd is not None]

    def pump(self) -> None:
        """Take new screens, read the pipe dry, hand on what fits."""
        self._accept()
        data = self._read_pipe()
        for client, waiting in list(self._clients.items()):
            if data and len(waiting) + len(data) <= CLIENT_BUFFER_BYTES:
                waiting.extend(data)
            self._flush(client, waiting)

    def close(self) -> None:
        for client in list(self._clients):
            client.close()
        self._clients.clear()
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._path is not None:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _discard(self) -> None:
        """What a dead supervisor left in the pipe is old: the journal has it."""
        with suppress(BlockingIOError):
            while self._pipe is not None and os.read(self._pipe, 65_536):
                pass

    def _read_pipe(self) -> bytes:
        chunks: list[bytes] = []
        with suppress(OSError):
            while self._pipe is not None and len(chunks) < 64:
                chunks.append(os.read(self._pipe, 65_536))
        whole, _, self._rest = (self._rest + b"".join(chunks)).rpartition(b"\n")
        if len(self._rest) > REST_BYTES:  # no writer of ours: records in the pipe are small
            self._rest = b""
        return whole + b"\n" if whole else b""

    def _accept(self) -> None:
        with suppress(OSError):
            while self._server is not None:
                client, _ = self._server.accept()
                client.setblocking(False)
                self._clients[client] = bytearray()

    def _flush(self, client: socket.socket, waiting: bytearray) -> None:
        try:
            while waiting:
                del waiting[: client.send(waiting)]
        except BlockingIOError:
            return
        except OSError:
            client.close()
            self._clients.pop(client, None)


def _listen(path: Path) -> socket.socket | None:
    """A listening socket; None where there can be none (screens then follow the journal alone)."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        path.unlink(missing_ok=True)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(16)
    except OSError:
        server.close()
        return None
    return server


class LiveStream:
    """A screen's side: lines from the run's relay, if there is one now."""

    def __init__(self, run_root: Path) -> None:
        self._root = run_root
        self._socket: socket.socket | None = None
        self._rest = b""

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def connect(self) -> bool:
        """Connect if there is a relay; False when there is none."""
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
        """Whole lines that have arrived; empty when none have, or the relay is gone."""
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
        return [line for line in lines if line]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
