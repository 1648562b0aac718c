"""The end of an attempt's console.log: what its engine and its libraries printed. Bounded, and regular files only.

The lines are data from elsewhere; they are not safe to print before `safe_text`.
"""

from __future__ import annotations

import os
import re

from engines.files import open_regular
from engines.run_dir import RunDir

TAIL_BYTES = 64 * 1024
_STAGE_NAME = re.compile(r"[A-Za-z0-9-][A-Za-z0-9._-]{0,99}")
"""A stage's name comes from the journal: one that is not a plain name cannot lead out of the run's folder."""


def console_tail(run: RunDir, stage: str, attempt: int, max_bytes: int = TAIL_BYTES) -> list[str]:
    """The last whole lines of the attempt's console.log, as a terminal would show them after carriage returns.

    Raises:
        OSError: there is no such regular file, or it cannot be read.
    """
    if not _STAGE_NAME.fullmatch(stage):
        raise FileNotFoundError(f"no console.log: {stage!r} is not the name of a stage")
    with open_regular(run.console_log(stage, attempt), follow=False) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - max_bytes))
        data = file.read(max_bytes)
    if size > max_bytes:
        data = data.partition(b"\n")[2]  # the first line is cut
    lines = data.decode("utf-8", "replace").split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in lines]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def last_lines(run: RunDir, stage: str | None, attempt: int | None, count: int) -> list[str]:
    """The last `count` lines that are not empty; none when there is no console.log."""
    if stage is None or attempt is None:
        return []
    try:
        lines = console_tail(run, stage, attempt, TAIL_BYTES)
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]
