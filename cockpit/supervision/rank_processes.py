"""The processes that torchrun started for an attempt: the ones whose states and stacks explain a silence."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cockpit.supervision.process_tree import carries_mark
from engines.identity import Identity


def rank_processes(torchrun: Identity, run_root: Path) -> dict[int, Identity]:
    """The living processes of this host by rank; empty for an engine that is one process."""
    found = {}
    for pid in _children(torchrun.pid):
        rank = _rank_of(pid)
        identity = Identity.of(pid)
        if rank is not None and identity is not None and carries_mark(pid, run_root):
            found[rank] = identity
    return dict(sorted(found.items()))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError, ValueError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def _rank_of(pid: int) -> int | None:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = next((pair[5:] for pair in pairs if pair.startswith(b"RANK=")), b"")
    return int(found) if found.isdigit() else None
