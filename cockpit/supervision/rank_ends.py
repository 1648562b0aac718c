"""Which process of a launch failed first, and why: what the end of an attempt of several processes is called by.

torchrun's own exit status is 1 whatever has happened. Of the processes, one fails by itself; the others then fail too,
because they wait for it in an exchange. So an end by a signal, or by an error that is not about another process, comes
before those.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from cockpit.runs.ending import console_tail
from cockpit.supervision.engine_process import exit_reason
from engines.events.attempts import RankEnded, RanksPlaced
from engines.files import open_append
from engines.journal import read_journal
from engines.ranks.watched import read_ends, read_reason
from engines.run_dir.paths import RunDir
from engines.words import EndReason

_TAIL_LINES = 80
_QUIET = frozenset({EndReason.NOT_GIVEN, EndReason.RANK_LOST, EndReason.SUCCEEDED, EndReason.STOPPED})


@dataclass(frozen=True)
class RankCause:
    """The process whose end ended the attempt; `exit` is its own status."""

    rank: int
    reason: EndReason
    detail: str
    exit: int | None


def cause_of_ranks(
    run: RunDir, stage: str, attempt: int, world_size: int, first: tuple[EndReason, str]
) -> RankCause | None:
    """The process that failed by itself, before all others; None if none did, or if nothing is known of them.

    Args:
        run: the run.
        stage: the stage.
        attempt: its attempt.
        world_size: the number of its processes.
        first: the reason and detail that rank 0 recorded for its end.
    """
    ends = read_ends(run.ranks_json(stage, attempt))
    own = {0: first, **_recorded(run, stage, attempt, (end.rank for end in ends))}
    for end in ends:
        reason, detail = own.get(end.rank, (EndReason.NOT_GIVEN, ""))
        # torchrun may have taken the status of a process that has recorded why it failed.
        by_record = end.status is None and reason not in _QUIET and not end.ended_by_us
        if not (end.failed or by_record) or reason is EndReason.RANK_LOST:
            continue
        if reason in _QUIET:
            reason, detail = exit_reason(end.status)
        name = f"rank {end.rank} of {world_size}"
        return RankCause(end.rank, reason, f"{name}: {detail}" if detail else f"{name}: {reason}", end.status)
    return None


def end_elsewhere(run: RunDir, stage: str, attempt: int) -> tuple[EndReason, str] | None:
    """The end of an attempt that has no rank 0 here, because that is on another host, or because nothing was started;
    None for any other."""
    path = run.ranks_json(stage, attempt)
    if reason := read_reason(path):
        return EndReason.ERROR, reason
    ends = read_ends(path)
    if not ends or any(end.rank == 0 for end in ends):
        return None
    placed = [
        event
        for end in ends
        for event in read_journal(run.rank_journal(stage, attempt, end.rank))
        if isinstance(event, RanksPlaced)
    ]
    if not placed:
        return None
    where = f"rank 0 is on host {placed[-1].host}: its run {placed[-1].run} has"
    if all(end.status == 0 for end in ends):
        return EndReason.STOPPED, f"{where} the results"
    return EndReason.RANK_LOST, f"{where} the cause, because an exchange with another host failed"


def _recorded(run: RunDir, stage: str, attempt: int, ranks: Iterable[int]) -> dict[int, tuple[EndReason, str]]:
    """What the processes above rank 0 recorded of their ends."""
    found = {}
    for rank in {rank for rank in ranks if rank > 0}:
        for event in read_journal(run.rank_journal(stage, attempt, rank)):
            if isinstance(event, RankEnded):
                found[rank] = event.reason, event.detail
    return found


def forget_torchrun(run: RunDir, stage: str, attempt: int) -> None:
    """Remove torchrun's own files of an ended attempt: it removes them itself, unless it was killed."""
    shutil.rmtree(run.torchrun_logs(stage, attempt), ignore_errors=True)


def show_console_of(run: RunDir, stage: str, attempt: int, rank: int) -> None:
    """Copy the end of what a process above rank 0 printed into console.log, where readers look for a cause."""
    if rank == 0:
        return
    with suppress(OSError):
        lines = console_tail(run, stage, attempt, rank=rank)[-_TAIL_LINES:]
        text = "\n".join([f"cockpit: the end of {run.rank_console(stage, attempt, rank).name}:", *lines])
        fd = open_append(run.console_log(stage, attempt))
        try:
            os.write(fd, f"\n{text}\n".encode("utf-8", "replace"))
        finally:
            os.close(fd)
