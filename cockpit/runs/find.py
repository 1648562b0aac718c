"""The folder of runs, and the run that RUN names: `last`, an id, a prefix or a path."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from engines.run_dir.moved_runs import former_ids
from engines.run_dir.paths import RUN_ID, RunDir, is_run_dir
from recipes.problems import OperatorError

MINUTE = len("20261120-2130")
"""Ids begin with the minute of the launch; within a minute, the date of `run.json` decides which run is newer."""


def runs_root(argument: str | Path | None = None) -> Path:
    """The folder of runs: `--runs-dir`, else COCKPIT_RUNS_DIR, else $XDG_DATA_HOME/cockpit/runs."""
    chosen = argument or os.environ.get("COCKPIT_RUNS_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return (Path(data).expanduser() / "cockpit" / "runs").absolute()


def run_ids(root: Path) -> list[str]:
    """Ids of the runs in a folder, newest first; none if the folder cannot be read."""
    return listed_runs(root)[0]


def listed_runs(root: Path) -> tuple[list[str], str]:
    """Ids of the runs in a folder, newest first, and why the folder cannot be read (empty if it can, or is missing)."""
    made: dict[str, int] = {}
    try:
        with os.scandir(root) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with suppress(OSError):  # a link without an end, for example: only this entry is no run
                        made[entry.name] = _made_ns(root, entry)
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return [], f"{root} cannot be read: {getattr(error, 'strerror', None) or error}"
    return sorted(made, key=lambda name: (name[:MINUTE], made[name], _id_order(name)), reverse=True), ""


def find_run(root: Path, wanted: str) -> RunDir:
    """The run that `wanted` names.

    Raises:
        OperatorError: no run matches, or more than one.
    """
    if os.sep in wanted or wanted in {".", ".."}:
        path = Path(wanted).expanduser().absolute()
        with suppress(OSError):  # a name that is too long, for example
            if is_run_dir(path):
                return _openable(RunDir(path))
        raise OperatorError(
            f"{path} is not a run directory (no run.json)", "give a run's id, a prefix of it, its path, or: last"
        )
    ids, trouble = listed_runs(root)
    if trouble:
        raise OperatorError(trouble, "choose another folder of runs: --runs-dir DIR")
    if wanted == "last":
        for name in ids:  # not one that only another user can open
            if os.access(root / name, os.X_OK, effective_ids=True):
                return _openable(RunDir(root / name))
        raise OperatorError(f"no runs in {root} yet", "start one: cockpit run demo")
    matches = [name for name in ids if name == wanted] or [name for name in ids if name.startswith(wanted)]
    if len(matches) == 1:
        return _openable(RunDir(root / matches[0]))
    if matches:
        raise OperatorError(
            f"RUN — {wanted!r} matches {len(matches)} runs: {', '.join(matches[:6])}", "give more of the id"
        )
    renamed = [name for name in ids if wanted in former_ids(root / name)]
    if len(renamed) == 1:
        return _openable(RunDir(root / renamed[0]))
    near = [name for name in ids if wanted in name][:6]
    raise OperatorError(
        f"RUN — no run {wanted!r} among the {len(ids)} runs in {root}"
        + (f"; similar: {', '.join(near)}" if near else ""),
        "list all runs: cockpit ls",
    )


def _openable(run: RunDir) -> RunDir:
    """The run, if its folder and its journal may be opened.

    Raises:
        OperatorError: one of them may not; only its owner can look at it.
    """
    closed = run.closed_to_us()
    if closed is not None:
        raise OperatorError(
            f"{run.id} — {closed} cannot be opened: Permission denied", "ask its owner; if you are, chmod u+rwX it"
        )
    return run


def _made_ns(root: Path, entry: os.DirEntry[str]) -> int:
    """When a run was made, in nanoseconds; of a folder with a run's name that may not be opened, when it changed.

    Raises:
        OSError: it is no run.
    """
    try:
        return RunDir(root / entry.name).run_json.lstat().st_mtime_ns
    except PermissionError:
        if RUN_ID.match(entry.name) is None:
            raise
        return entry.stat(follow_symlinks=False).st_mtime_ns


def _id_order(name: str) -> tuple[str, int, str]:
    """Sort key for ids of the same minute, which end with -2, -3, …: order these as numbers."""
    base, _, tail = name.rpartition("-")
    return (base, int(tail), "") if tail.isdigit() and base.count("-") >= 2 else (name, 1, "")
