"""Places the files of a finished output into a folder that the operator named. Nothing there is replaced unless the
operator allows it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from engines.artifacts.manifest import MANIFEST
from engines.files import fsync_file, fsync_folder, open_regular
from recipes.problems import OperatorError, printable

LINKED_BYTES = 16 * 1024 * 1024
"""Smaller files are copied; larger ones share their bytes with the run's where the file system can do that."""
_FICLONE = 0x40049409
"""The request of Linux's ioctl_ficlone(2): a file with the bytes of another, which are copied when one is changed."""
_SHOWN = 8


def deliver(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Place every file of a folder into another one, under temporary names first; the manifest comes last.

    A large file is cloned, else linked, else copied. After an error, the files that this call placed are removed
    again, except those that replaced others.

    Raises:
        OperatorError: the target has files of these names and `overwrite` is False, or is not a folder.
        OSError: the disk is full or fails.
    """
    names = sorted((path.relative_to(folder) for path in folder.rglob("*") if path.is_file()), key=_manifest_last)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OperatorError(f"output_dir — {target} is not a folder", "name a folder") from error
    taken = [name for name in names if os.path.lexists(target / name)]
    if taken and not overwrite:
        raise _taken(target, taken)
    placed: list[Path] = []
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _place(folder / name, target / name, overwrite=overwrite)
            placed.append(target / name)
    except BaseException:
        for path in placed if not overwrite else ():
            with suppress(OSError):
                path.unlink()
        raise
    fsync_folder(target)


def _taken(target: Path, names: list[Path]) -> OperatorError:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = ", ".join(printable(str(name), 120) for name in names[:_SHOWN])
    return OperatorError(
        f"output_dir — {printable(str(target), 400)} already has {listed}{more}",
        "choose another folder, or replace them: --force (overwrite_output_dir = true)",
    )


def _manifest_last(name: Path) -> tuple[bool, str]:
    return name.name == MANIFEST, name.as_posix()


def _place(source: Path, final: Path, *, overwrite: bool) -> None:
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        _copy(source, temporary)
        if overwrite:
            temporary.replace(final)
        else:
            _rename_new(temporary, final)
    finally:
        with suppress(FileNotFoundError):  # a link of the file that it replaced keeps its name
            temporary.unlink()


def _copy(source: Path, target: Path) -> None:
    """A new file with the bytes of another, durable."""
    if not _cloned(source, target) and not _linked(source, target):
        with open_regular(source, follow=False) as given, _new(target) as new:
            shutil.copyfileobj(given, new, LINKED_BYTES)
    fsync_file(target)


def _new(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _cloned(source: Path, target: Path) -> bool:
    """Create a clone of a file; False, and no file, if the file system cannot."""
    with open_regular(source, follow=False) as given, _new(target) as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, given.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def _linked(source: Path, target: Path) -> bool:
    """Create a link to a large file; False for a small one, or if the file system cannot."""
    if source.stat().st_size < LINKED_BYTES:
        return False
    try:
        target.hardlink_to(source)
    except OSError:
        return False
    return True


def _rename_new(temporary: Path, final: Path) -> None:
    """Give a file its final name, which no file has.

    Raises:
        OperatorError: another process has written a file of the name meanwhile.
    """
    try:
        final.hardlink_to(temporary)
    except FileExistsError as error:
        raise _taken(final.parent, [Path(final.name)]) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        temporary.rename(final)  # a file system without links
