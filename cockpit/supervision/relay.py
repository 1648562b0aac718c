"""The live stream's last hop: the supervisor sends every line of the pipe to each attached screen over a Unix socket.

The buffer per client is bounded: a slow screen loses lines here and fills the gap from the journal. The client's side
is `cockpit.runs.live_stream`.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from cockpit.runs.live_stream import REFUSED, socket_path

CLIENT_BUFFER_BYTES = 1 << 20
REST_BYTES = 1 << 16
MOST_SOCKETS = 200
"""Sockets that are looked at when a relay starts."""
MOST_CLIENTS = 32
"""Screens that one run serves. Each may have a full buffer, and every record is sent to each; the next ones read the
journal, which lacks nothing."""


class Relay:
    """The supervisor's side: reads the pipe and serves the screens. `pump()` does not block."""

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
        """Descriptors to wait for before `pump`."""
        return [fd for fd in (self._pipe, self._server.fileno() if self._server else None) if fd is not None]

    def pump(self) -> bytes:
        """Accept new screens, empty the pipe, and send what the clients' buffers can take; returns the pipe's lines."""
        self._accept()
        data = self._read_pipe()
        for client, waiting in list(self._clients.items()):
            if data and len(waiting) + len(data) <= CLIENT_BUFFER_BYTES:
                waiting.extend(data)
            self._flush(client, waiting)
        return data

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
        """Discard what a dead supervisor left in the pipe: the journal contains it."""
        with suppress(BlockingIOError):
            while self._pipe is not None and os.read(self._pipe, 65_536):
                pass

    def _read_pipe(self) -> bytes:
        chunks: list[bytes] = []
        with suppress(OSError):
            while self._pipe is not None and len(chunks) < 64:
                chunks.append(os.read(self._pipe, 65_536))
        whole, _, self._rest = (self._rest + b"".join(chunks)).rpartition(b"\n")
        if len(self._rest) > REST_BYTES:  # not an engine's record: records in the pipe are small
            self._rest = b""
        return whole + b"\n" if whole else b""

    def _accept(self) -> None:
        with suppress(OSError):
            while self._server is not None:
                client, _ = self._server.accept()
                client.setblocking(False)
                if len(self._clients) >= MOST_CLIENTS:
                    with suppress(OSError):
                        client.send(REFUSED + b'"this run serves %d screens already"}\n' % MOST_CLIENTS)
                    client.close()
                    continue
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
    """A listening socket; None if it cannot be created (screens then read only the journal)."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # It has its name only once it listens, so that no other relay takes it for the socket of a dead supervisor.
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        _remove_stale(path.parent)
        server.bind(str(draft))
        draft.chmod(0o600)
        server.listen(16)
        draft.rename(path)
    except OSError:
        server.close()
        return None
    return server


def _remove_stale(folder: Path) -> None:
    """Remove the sockets of supervisors that were killed: nothing listens on them any more."""
    for path in list(folder.glob("*.sock"))[:MOST_SOCKETS]:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        except OSError:
            continue  # busy, or gone already
        finally:
            client.close()
