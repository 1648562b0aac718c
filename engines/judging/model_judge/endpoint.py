"""One bounded request to an OpenAI-compatible URL: no redirects, a limit of bytes, and a deadline for all of it."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from recipes import quantities

MOST_BYTES = 1024 * 1024
_PATH = "/chat/completions"


class EndpointError(Exception):
    """No usable reply. `again` says that another attempt may help."""

    def __init__(self, text: str, *, again: bool) -> None:
        super().__init__(text)
        self.again = again


def url_problem(url: str, has_key: bool) -> str:
    """Why a URL cannot be used; empty if it can. A key goes over https, or to this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not host:
        return "not a URL that begins with http:// or https://"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "a URL with a user, a password, a query or a fragment"
    if any(ord(char) <= 32 or ord(char) == 127 for char in url):
        return "a URL with blanks or control characters"
    if has_key and parts.scheme == "http" and not _is_this_machine(host):
        return "a key would go over the network as plain text; use https"
    return ""


def post(url: str, body: dict[str, Any], key: str, timeout_s: float) -> Any:
    """Send a chat request and return the parsed reply.

    Args:
        url: the base, such as https://host/v1, or the whole address of chat/completions.
        body: the request.
        key: for the header Authorization; empty without one.
        timeout_s: until the whole reply must be there.

    Raises:
        EndpointError: no connection, no reply in time, another status than 200, or not JSON.
    """
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PATH) else path + _PATH
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    late = threading.Event()
    try:
        connection.connect()
        # A reply that comes byte by byte would renew the socket's own timeout each time.
        timer = threading.Timer(timeout_s, _cut, (connection.sock, late))
        timer.start()
        try:
            connection.request("POST", path, json.dumps(body), headers)
            with connection.getresponse() as reply:
                status, data = reply.status, reply.read(MOST_BYTES + 1)
        finally:
            timer.cancel()
    except (OSError, http.client.HTTPException) as error:
        if late.is_set() or isinstance(error, TimeoutError):
            raise EndpointError(f"it took more than {quantities.exact(timeout_s)} s", again=True) from error
        raise EndpointError(f"no connection: {type(error).__name__}", again=True) from error
    finally:
        connection.close()
    if late.is_set():
        raise EndpointError(f"it took more than {quantities.exact(timeout_s)} s", again=True)
    return _parsed(status, data)


def _parsed(status: int, data: bytes) -> Any:
    if 300 <= status < 400:
        raise EndpointError(f"it answers with a redirect (status {status}), which is not followed", again=False)
    if status != http.client.OK:
        raise EndpointError(f"it answers with status {status}", again=status == 429 or status >= 500)
    if len(data) > MOST_BYTES:
        raise EndpointError(f"its reply is larger than {quantities.size(MOST_BYTES)}", again=False)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EndpointError("its reply is not JSON", again=False) from error


def _cut(line: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
