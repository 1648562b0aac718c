"""Removing runs: never a live one, and not what another run was made from unless the operator insists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cockpit.keeping.hold import TRASH, held, remove_entry, require_removable
from cockpit.keeping.uses import made_in, uses_in
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError


def users_of(runs: Sequence[RunDir], root: Path) -> dict[str, set[str]]:
    """For each run by id, the stages of other runs that its outputs and checkpoints are ancestors of."""
    uses = uses_in(root, besides=[run.id for run in runs if run.root.parent == root])
    found: dict[str, set[str]] = {}
    for run in runs:
        below = f"{run.root}{os.sep}"
        by_path = [who for path, who in uses.by_path.items() if path.startswith(below)]
        users = set().union(*(uses.of(sha256, folder) for sha256, folder in made_in(run).items()), *by_path)
        if users:
            found[run.id] = users
    return found


def refuse_used(users: dict[str, set[str]]) -> None:
    """Refuse to remove runs that others were made from.

    Raises:
        OperatorError: there are users; each run is named with some of them.
    """
    if users:
        lines = [f"{run} is an ancestor of {_some(sorted(names))}" for run, names in sorted(users.items())]
        raise OperatorError("\n".join(lines), "nothing was removed; to remove it anyway: --force")


def refuse_live(runs: Sequence[RunDir]) -> None:
    """Refuse to remove runs of which one is live, belongs to another user, or has a folder that cannot be emptied.

    Raises:
        OperatorError: every such run is named.
    """
    refused: list[OperatorError] = []
    for run in runs:
        try:
            with held(run), _home(run) as home:
                require_removable(home, run.root.name)
        except OperatorError as error:
            refused.append(error)
        except OSError as error:
            refused.append(_not_removable(run, error))
    if refused:
        hints = dict.fromkeys(error.hint for error in refused if error.hint)
        raise OperatorError("\n".join(str(error) for error in refused), "\n".join([*hints, "nothing was removed"]))


def remove_run(run: RunDir) -> None:
    """Remove a run's folder; links in it are removed, and what they point to is kept.

    Raises:
        OperatorError: the run is live, belongs to another user, or cannot be removed.
    """
    with held(run), _home(run) as home:
        try:
            remove_entry(home, run.root.name)
        except OSError as error:
            if os.path.lexists(run.root):
                raise _not_removable(run, error) from error
            raise OperatorError(
                f"{run.id} could not be removed completely: {error.strerror or error}",
                f"what is left has a name that begins with {TRASH} in {run.root.parent}",
            ) from error


@contextmanager
def _home(run: RunDir) -> Iterator[int]:
    """A descriptor of the folder that the run is in."""
    home = os.open(run.root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield home
    finally:
        os.close(home)


def _not_removable(run: RunDir, error: OSError) -> OperatorError:
    """The refusal for a run with a folder that cannot be emptied; nothing of it was removed."""
    where = f"{run.root.parent / error.filename}: " if error.filename else ""
    return OperatorError(
        f"{run.id} cannot be removed: {where}{error.strerror or error}", f"make it writable: chmod -R u+w {run.root}"
    )


def leftovers(root: Path) -> list[Path]:
    """Folders of removed runs that a kill left behind, of this user."""
    try:
        entries = [entry for entry in os.scandir(root) if entry.name.startswith(TRASH)]
    except OSError:
        return []
    found, own = [], os.geteuid()
    for entry in entries:
        with suppress(OSError):  # another process removes leftovers too
            if entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == own:
                found.append(Path(entry.path))
    return sorted(found)


def remove_leftover(folder: Path) -> None:
    """Remove what an earlier removal left.

    Raises:
        OSError: it cannot be removed.
    """
    home = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_entry(home, folder.name)
    finally:
        os.close(home)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
