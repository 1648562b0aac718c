"""Memory that a load of a model gives back to the system, where the process otherwise keeps what it frees."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MMAP_THRESHOLD = -3
"""`M_MMAP_THRESHOLD` of glibc's malloc.h: the bytes from which a buffer is a mapping of its own."""
RETURNED = 128 << 10
"""Buffers of a load that go back to the system when they are freed: glibc's own beginning."""
GLIBC_LARGEST = 32 << 20
"""Where glibc's adjustment of the threshold ends (`DEFAULT_MMAP_THRESHOLD_MAX`); a threshold that was set once is not
adjusted again."""
TUNABLES = "GLIBC_TUNABLES"
_SET = re.compile(r"(?:^|:)glibc\.malloc\.mmap_threshold=(0x[0-9a-fA-F]+|[0-9]+)(?=:|$)")


@contextmanager
def copies_returned(*, quantizes: bool) -> Iterator[None]:
    """Within a load that quantizes, each large buffer is a mapping of its own; after it, what is freed is kept.

    Another load makes no copies that it frees, and its weights stay where large pages are.

    It copies each weight in 16 bits, and keeps a quarter of it. In a heap the quarter is put where an earlier copy was,
    so the next copy does not fit there: the heap grows to the size of all copies. Mappings leave no gaps.

    Nothing changes where the C library is not glibc.
    """
    change = _mallopt() if quantizes else None
    if change is None:
        yield
        return
    change(MMAP_THRESHOLD, RETURNED)
    try:
        yield
    finally:
        change(MMAP_THRESHOLD, threshold_of(os.environ.get(TUNABLES, "")))


def threshold_of(tunables: str) -> int:
    """Bytes from which the process maps buffers outside of a load: the last value of its variable that counts."""
    found = _SET.findall(tunables)
    return min(int(found[-1], 0), (1 << 31) - 1) if found else GLIBC_LARGEST


def _mallopt() -> Callable[[int, int], int] | None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return None
    function = library.mallopt
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    changed: Callable[[int, int], int] = function
    return changed
