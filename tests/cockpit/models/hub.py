"""A small hub on this machine: models with their files, and the ways in which a hub fails."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "a" * 40


@dataclass
class Hub:
    """What the hub has, how it fails, and what it was asked.

    Attributes:
        files: contents by name.
        large: names that it keeps apart, with a SHA-256.
        cut: bytes after which it breaks a transfer off, by name; once.
        lies: sizes that it says instead, by name.
        swapped: other contents that it sends, by name.
        status: the status of every answer to `model_info`; 200 for the answer.
        extra: more entries of its list of files.
        reply: what it answers to `model_info` instead.
        loops: every file is a redirect to itself.
        asked: (path, Range, Authorization) of every request.
    """

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    lies: dict[str, int] = field(default_factory=dict)
    swapped: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    commit: str = COMMIT
    extra: list[Any] = field(default_factory=list)
    reply: bytes | None = None
    loops: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            size = self.lies.get(name, len(content))
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob}
            if name in self.large:
                one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
            siblings.append(one)
        siblings = [*siblings, *self.extra]
        return {"id": "org/name", "modelId": "org/name", "sha": self.commit, "siblings": siblings, "tags": []}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, at its `url`, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            place = unquote(self.path.partition("?")[0])
            if "org/name" not in place:  # the library asks for a list of programs that may use it
                self.send_error(404)
                return
            hub.asked.append((place, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
            if place.startswith("/api/models/"):
                self.answer_info()
            elif hub.loops:
                self.send_response(302)
                self.send_header("Location", f"{hub.url}{self.path}")
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self.send_file(place.rpartition(f"/resolve/{hub.commit}/")[2])

        def answer_info(self) -> None:
            content = json.dumps(hub.info() if hub.status == 200 else {"error": "no"}).encode()
            content = content if hub.reply is None else hub.reply
            self.send_response(hub.status)
            if hub.status == 429:
                self.send_header("Retry-After", "7")
            if hub.status == 404:
                self.send_header("X-Error-Code", "RevisionNotFound")
            if hub.status == 403:
                self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def send_file(self, name: str) -> None:
            content = hub.swapped.get(name, hub.files[name])
            start = int((self.headers.get("Range") or "bytes=0-").partition("=")[2].partition("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            end = hub.cut.pop(name, len(content))
            self.wfile.write(content[start:end])
            if end < len(content):
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(2)

        def log_message(self, *_words: object) -> None:
            """Tests look at `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
