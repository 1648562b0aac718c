"""Runs that were renamed or moved since their paths were recorded: their earlier ids, and their present places."""

from __future__ import annotations

import json
import os
from pathlib import Path

from engines.files import fsync_folder, write_durably
from engines.json_text import read_json
from engines.run_dir.paths import RUN_JSON, STAGES, RunDir, RunDirError, is_run_dir

_FORMER_IDS = "former_ids"


def former_ids(run_root: Path) -> list[str]:
    """The ids that a run had before it was renamed, oldest first; empty if `run.json` cannot be read."""
    try:
        value = read_json(run_root / RUN_JSON).get(_FORMER_IDS)
    except (OSError, ValueError, AttributeError):
        return []
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def rename_run(run: RunDir, new_id: str) -> RunDir:
    """Rename a run's folder; `run.json` keeps its earlier ids, so that references to them are found.

    The caller knows that the run is not running. A kill between the two writes leaves the old name, which then is in
    the list of earlier ids too.

    Raises:
        RunDirError: `run.json` cannot be read, or the name is taken.
        OSError: the folder cannot be written.
    """
    target = run.root.with_name(new_id)
    if target.exists() or target.is_symlink():
        raise RunDirError(f"{target} exists")
    facts = run.read_run_json()
    facts = {**facts, "id": new_id, _FORMER_IDS: list(dict.fromkeys([*former_ids(run.root), run.id]))}
    write_durably(run.run_json, json.dumps(facts, indent=1).encode())
    run.root.rename(target)
    fsync_folder(target.parent)
    return RunDir(target)


def run_named(home: Path, run_id: str) -> Path:
    """The folder of a run in a folder of runs, by its id or by an id that it had before it was renamed."""
    wanted = home / run_id
    if not is_run_dir(wanted):
        for entry in _folders(home):
            if run_id in former_ids(entry):
                return entry
    return wanted


def _folders(home: Path) -> list[Path]:
    try:
        found = [entry.name for entry in os.scandir(home) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [home / name for name in sorted(found) if not name.startswith(".")]


def place_now(recorded: Path, near: Path) -> Path:
    """The present place of a run's folder that was recorded by its absolute path; the run may have been moved since.

    Args:
        recorded: the recorded path, …/RUN/stages/….
        near: a folder that was moved together with it: of the same run, or of a run beside it.

    Returns:
        The recorded path if it exists, else the same run and stage in a folder above `near`, also under the name that
        the run has been given since, else the recorded path.
        A caller that knows the folder's manifest must compare it: another run may have the same name.
    """
    parts = recorded.parts
    if recorded.exists() or STAGES not in parts[1:]:
        return recorded
    run = len(parts) - 1 - parts[::-1].index(STAGES) - 1
    for above in near.absolute().parents:
        found = above.joinpath(*parts[run:])
        if found.is_dir():
            return found
    if run < 1:
        return recorded
    beside = (above.parent for above in near.absolute().parents if is_run_dir(above))
    for home in dict.fromkeys([recorded.parents[len(parts) - run - 1], *beside]):
        found = run_named(home, parts[run]).joinpath(*parts[run + 1 :])
        if found.is_dir():
            return found
    return recorded
