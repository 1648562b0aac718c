"""Holding a run that is not running, while its files are removed or renamed.

A run's folder may contain links that its owner did not make. Nothing here follows one: folders are opened from the
run's own descriptor, part by part, and only what this user owns is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cockpit.runs.reader import RunReader
from engines.run_dir.paths import FORMAT, RunDir, RunDirError
from recipes.problems import OperatorError

TRASH = ".trash-"
"""Beginning of the name of what is being removed: lists leave it out, and a kill leaves nothing that looks whole."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def held(run: RunDir) -> Iterator[int]:
    """A descriptor of the run's folder; no supervisor can start on the run while the block runs.

    Raises:
        OperatorError: the folder is a link, belongs to another user, or cannot be opened; or the run is running.
    """
    try:
        folder = os.open(run.root, _FOLDER)
    except OSError as error:
        raise OperatorError(
            f"{run.id} — {run.root} cannot be opened as a folder of its own: {error.strerror}"
        ) from error
    lock = -1
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise OperatorError(f"{run.id} belongs to another user", "only its owner can change it")
        state = RunReader(run, indexed=True).refresh()
        if state.is_live:
            raise OperatorError(f"{run.id} is {state}", f"stop it first: cockpit stop {run.id}")
        lock = _locked(run, folder)
        yield folder
    finally:
        for fd in (lock, folder):
            if fd >= 0:
                os.close(fd)


def require_known_format(run: RunDir) -> None:
    """Refuse to change a run that a newer Cockpit made: what its files need is not known here.

    Raises:
        OperatorError: its format is newer.
    """
    try:
        found = run.read_run_json().get("format")
    except RunDirError:
        return
    if isinstance(found, int) and found > FORMAT:
        raise OperatorError(
            f"{run.id} is of a newer Cockpit (format {found}, here up to {FORMAT}): it is shown, and not changed",
            "change it with that Cockpit",
        )


def _locked(run: RunDir, folder: int) -> int:
    """Take the supervisor's lock; -1 for a run that never had a supervisor."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(run.supervisor_lock.name, flags, dir_fd=folder)
    except OSError:
        return -1
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise OperatorError(f"{run.id} is running", f"stop it first: cockpit stop {run.id}") from error
    return fd


def remove_below(folder: int, parts: Sequence[str]) -> None:
    """Remove a folder below a descriptor: it is renamed first, then deleted.

    Raises:
        OSError: a part is a link or not a folder, or cannot be removed.
    """
    *above, name = parts
    fds: list[int] = []
    try:
        for part in above:
            fds.append(os.open(part, _FOLDER, dir_fd=fds[-1] if fds else folder))
        remove_entry(fds[-1] if fds else folder, name)
    finally:
        for fd in fds:
            os.close(fd)


def remove_entry(folder: int, name: str) -> None:
    """Remove a folder in an open folder.

    Raises:
        OSError: it is a link or not a folder, or cannot be removed; what cannot be removed as a whole keeps its name.
    """
    if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise NotADirectoryError(f"{name} is not a folder of its own")
    trash = name if name.startswith(TRASH) else f"{TRASH}{name[:200]}-{os.urandom(4).hex()}"
    if trash != name:
        require_removable(folder, name)
        os.rename(name, trash, src_dir_fd=folder, dst_dir_fd=folder)
    shutil.rmtree(trash, dir_fd=folder)


def require_removable(folder: int, name: str) -> None:
    """Refuse a folder of which a part would be left: a folder in it that is read-only, or that another user owns.

    Raises:
        PermissionError: with the path of the first one, from `name` on.
    """
    for path, folders, files, fd in os.fwalk(name, dir_fd=folder, follow_symlinks=False, onerror=_raise):
        if (folders or files) and not os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _raise(error: OSError) -> None:
    raise error
