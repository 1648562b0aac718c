"""Folders of runs that were recorded by their absolute path, after the runs were moved to another disk or machine."""

from __future__ import annotations

from pathlib import Path

from engines.run_dir import STAGES


def place_now(recorded: Path, near: Path) -> Path:
    """Where a recorded folder of a run is now.

    Args:
        recorded: …/RUN/stages/…, as it was when it was written down.
        near: a folder that moved along: of the same run, or of one that was beside it.

    Returns:
        The recorded path if something is there, else the folder of that run and stage above `near`, else the recorded path.
        Whoever knows the folder's manifest compares it: a run of the same name may be another one.
    """
    parts = recorded.parts
    if recorded.exists() or STAGES not in parts[1:]:
        return recorded
    run = len(parts) - 1 - parts[::-1].index(STAGES) - 1
    for above in near.absolute().parents:
        found = above.joinpath(*parts[run:])
        if found.is_dir():
            return found
    return recorded
