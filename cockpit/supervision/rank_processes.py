"""The processes that torchrun started for an attempt: the ones whose states and stacks explain a silence."""

from __future__ import annotations

from pathlib import Path

from cockpit.supervision.process_tree import carries_mark
from engines.identity import Identity
from engines.ranks.children import children_of, rank_of


def rank_processes(torchrun: Identity, run_root: Path) -> dict[int, Identity]:
    """The living processes of this host by rank; empty for an engine that is one process."""
    found = {}
    for pid in children_of(torchrun.pid):
        rank = rank_of(pid)
        identity = Identity.of(pid)
        if rank is not None and identity is not None and carries_mark(pid, run_root):
            found[rank] = identity
    return dict(sorted(found.items()))
