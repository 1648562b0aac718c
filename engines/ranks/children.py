"""The processes that torchrun has started, and which rank each of them is, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """The children of a process; empty without the process."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def rank_of(pid: int) -> int | None:
    """The rank in a process's environment; None before it has its own, and for another process."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = next((pair[5:] for pair in pairs if pair.startswith(b"RANK=")), b"")
    return int(found) if found.isdigit() else None
