"""Addresses of this host: whether a rendezvous is here, and by which interface other hosts are reached."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

from recipes.problems import OperatorError

_SIOCGIFADDR = 0x8915
"""The request of the kernel for an interface's IPv4 address (netdevice(7))."""


def split(endpoint: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, without the brackets of an IPv6 address."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def is_here(endpoint: str) -> bool:
    """Whether an address of this host is named: only those can be bound.

    Raises:
        OperatorError: the name has no address.
    """
    family, address = _address(endpoint)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def why_not_free(endpoint: str) -> str:
    """Why nothing can listen at an address of this host; empty if something can.

    Raises:
        OperatorError: the name has no address.
    """
    family, address = _address(endpoint)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, split(endpoint)[1]))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def own_address(endpoint: str) -> str:
    """The address of this host from which the rendezvous is reached.

    Raises:
        OperatorError: no route leads there.
    """
    family, address = _address(endpoint)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connects without sending anything
        try:
            probe.connect((address, split(endpoint)[1]))
        except OSError as error:
            raise OperatorError(
                f"launch.rendezvous — {endpoint} cannot be reached: {error.strerror or error}",
                "name an address of the first host that every host has a route to",
            ) from error
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The name of the network interface that has an IPv4 address; empty if none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def _address(endpoint: str) -> tuple[socket.AddressFamily, str]:
    host, port = split(endpoint)
    found = []
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not found:
        raise OperatorError(
            f"launch.rendezvous — the name {host} has no address here", "use the first host's IP address"
        )
    return found[0][0], str(found[0][4][0])
