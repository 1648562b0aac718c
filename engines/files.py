"""Files: atomic writes, reads of regular files only, and the SHA-256 of their bytes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from recipes.problems import OperatorError

PARTIAL = ".partial"
"""Suffix of the temporary name of a large file; the next process that writes the file reuses the name."""
CHUNK_BYTES = 8 * 1024 * 1024
READ_STEP_BYTES = 1 << 16
MAX_READ_BYTES = 256 * 1024 * 1024
"""The largest file that is read at once: several times the size of the largest published tokenizer.json."""
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja", ".bin", ".pt", ".pth"})
"""Suffixes of the files that other libraries read in a folder of a model, an adapter or a tokenizer."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


# ---- writing


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file that only its owner can read: temporary name, fsync, rename, fsync of the folder.

    Several processes may write the same file at the same time; the last rename wins.

    Raises:
        OSError: the disk is full or fails; the old file is unchanged, and no partial files are left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def write_cache(path: Path, *parts: bytes) -> None:
    """Write a file, in parts, that can be made again and that contains its own checksum: whole, and not durable.

    Raises:
        OSError: it cannot be written; the old file is unchanged, and no partial files were left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.writelines(parts)
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


class Draft:
    """A file under a temporary name: `commit` gives it its final name, `abandon` deletes it.

    For writing over many calls, or by a foreign program; `atomic_file` and `atomic_path` are shorter otherwise. While a
    draft exists, a second draft of the same name is refused. A killed process leaves the temporary file behind.

    Attributes:
        path: where to write; at first an empty file, which the writer may replace.
    """

    def __init__(self, final: Path, path: Path | None = None) -> None:
        """Create the empty file.

        Args:
            final: the final name of the file.
            path: the temporary name, on the same file system; by default `final` with the suffix `.partial`.

        Raises:
            OperatorError: another process is writing this file.
            OSError: the folder cannot be written.
        """
        self.final = final
        self.path = final.with_name(final.name + PARTIAL) if path is None else path
        self._lock = _locked(self.path)

    def commit(self) -> None:
        """Make the file durable and rename it to its final name.

        Raises:
            OSError: that failed; the draft is deleted, and an older file of the name is unchanged.
        """
        try:
            fsync_file(self.path)
            self.path.rename(self.final)
        except BaseException:
            self.abandon()
            raise
        os.close(self._lock)
        fsync_folder(self.final.parent)

    def abandon(self) -> None:
        """Delete the draft."""
        with suppress(OSError):
            self.path.unlink()
        os.close(self._lock)


@contextmanager
def atomic_path(final: Path, path: Path | None = None) -> Iterator[Path]:
    """The path of a `Draft`, for a program that opens the file itself; commits at the end, abandons on an exception."""
    draft = Draft(final, path)
    try:
        yield draft.path
    except BaseException:
        draft.abandon()
        raise
    draft.commit()


@contextmanager
def atomic_file(final: Path) -> Iterator[BinaryIO]:
    """A `Draft`, opened for writing; commits at the end, abandons on an exception."""
    with atomic_path(final) as path, path.open("wb") as file:
        yield file


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable, also those that another process wrote."""
    _fsync(path, 0)


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable, where the file system supports it."""
    try:
        _fsync(folder, os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _fsync(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(path: Path) -> int:
    """Create or empty a file and lock it; returns the descriptor, which holds the lock until it is closed."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _lock(fd, path)
            if _is_still(fd, path):
                os.ftruncate(fd, 0)
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another writer renamed it between open and lock: it is a finished file now, not a draft


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OperatorError(f"{path}: another process is writing this file") from error
    except OSError:
        pass  # a file system without locks: the write is atomic anyway


def _is_still(fd: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


# ---- reading files from elsewhere


def open_regular(path: Path, max_bytes: int | None = None, *, follow: bool = True) -> BufferedReader:
    """Open a file from elsewhere for reading. A pipe, a device or a socket is refused without waiting for it.

    Args:
        path: the file.
        max_bytes: a larger file is refused; None for no limit.
        follow: whether to follow a symbolic link.

    Raises:
        OSError: the file cannot be opened, is not a regular file, or is too large; `strerror` has the reason.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is not None and found.st_size > max_bytes:
            raise _too_large(path, max_bytes)
    except BaseException:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


def read_regular_bytes(path: Path, max_bytes: int = MAX_READ_BYTES, *, follow: bool = True) -> bytes:
    """All bytes of a file from elsewhere; arguments and errors of `open_regular`."""
    with open_regular(path, max_bytes, follow=follow) as file:
        data = _at_most(file, max_bytes + 1)
    if len(data) > max_bytes:  # it has grown since it was opened
        raise _too_large(path, max_bytes)
    return data


def _at_most(file: BinaryIO, most: int) -> bytes:
    """The bytes of a file, at most this many. Python allocates all that a `read` allows before it reads, so no read
    allows much more than the file has."""
    pieces, total, step = [], 0, os.fstat(file.fileno()).st_size + 1
    while total < most and (piece := file.read(min(step, most - total))):
        pieces.append(piece)
        total += len(piece)
        step = READ_STEP_BYTES  # it grows, or does not have its size: a file of /proc
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_regular_text(path: Path, max_bytes: int = MAX_READ_BYTES, *, errors: str = "strict") -> str:
    """The text of a file from elsewhere, with the line ends that `Path.read_text` gives.

    Raises:
        OSError: as from `open_regular`.
        ValueError: the text is not UTF-8 (unless `errors` allows it).
    """
    data = read_regular_bytes(path, max_bytes)
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors=errors).read()


def open_append(path: Path) -> int:
    """Open a log or a journal for appending; a missing one is created for its owner only. Returns the descriptor.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def refuse_special_files(folder: Path) -> None:
    """Refuse a model's folder in which another library would block on a pipe or read a device endlessly.

    Raises:
        OperatorError: a file with the name of a config, tokenizer or weights file is not a regular file.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if Path(entry.name).suffix in MODEL_SUFFIXES]
    except OSError:
        return  # the caller's own read of the folder reports the error
    for entry in entries:
        with suppress(OSError):  # a dangling link counts as a missing file
            mode = entry.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise OperatorError(f"{entry.path} is not a regular file", "name a folder that save_pretrained wrote")


def read_into(path: Path, offset: int, place: memoryview) -> None:
    """Fill a buffer with a file's bytes, from an offset on.

    Raises:
        EOFError: the file ends before the buffer is full.
        OSError: as from `open_regular`.
    """
    with open_regular(path) as file:
        while place:  # one read returns at most 2 GiB
            count = os.preadv(file.fileno(), [place], offset)
            if not count:
                raise EOFError(f"{path} was truncated while it was read")
            place, offset = place[count:], offset + count


def _too_large(path: Path, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))


# ---- identity


def file_sha256(path: Path, progress: Callable[[int], None] = lambda _done: None) -> str:
    """SHA-256 of a file's bytes, as hex.

    Args:
        path: the file.
        progress: called with the number of bytes read so far; what it raises ends the reading.

    Raises:
        OSError: as from `open_regular`.
    """
    digest, done = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(done)
    return digest.hexdigest()
