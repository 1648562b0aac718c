"""Files: written whole or not at all, opened only if they are regular, and known by the SHA-256 of their bytes."""

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
"""What the temporary name of a large file ends with; the next process that writes the file uses the same name again."""
CHUNK_BYTES = 8 * 1024 * 1024
MAX_WHOLE_BYTES = 256 * 1024 * 1024
"""The largest file that is read at once: several times the largest tokenizer.json that is published."""
MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja", ".bin", ".pt", ".pth"})
"""What other libraries read in a folder of a model, an adapter or a tokenizer."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP)


# ---- writing


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file, for its owner alone: temporary name, fsync, rename, fsync of the folder.

    Several processes may write the same file at the same time: one of them wins.

    Raises:
        OSError: the disk is full or fails; the file is as it was before, and nothing else is left.
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


class Draft:
    """A file under a temporary name, which gets its own name by `commit` and goes away by `abandon`.

    For whoever writes over many calls, or has a foreign program write: otherwise `whole_file` and `whole_path` are
        shorter.
    While a draft lives, no second one of the same name can be made. A killed process leaves the temporary file.

    Attributes:
        path: where to write; an empty file at first, which may be replaced.
    """

    def __init__(self, final: Path, path: Path | None = None) -> None:
        """Make the empty file.

        Args:
            final: the name that the file gets.
            path: the temporary name, on the same file system; by default `final` with `.partial` behind it.

        Raises:
            OperatorError: another process is writing this file.
            OSError: the folder cannot be written.
        """
        self.final = final
        self.path = final.with_name(final.name + PARTIAL) if path is None else path
        self._lock = _locked(self.path)

    def commit(self) -> None:
        """Make the file durable and give it its name.

        Raises:
            OSError: that failed; nothing is left of the draft, and an older file of the name is as it was.
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
        """Leave nothing of it."""
        with suppress(OSError):
            self.path.unlink()
        os.close(self._lock)


@contextmanager
def whole_path(final: Path, path: Path | None = None) -> Iterator[Path]:
    """The path of a `Draft`, for a program that opens the file itself; committed at the end, abandoned after an
    exception."""
    draft = Draft(final, path)
    try:
        yield draft.path
    except BaseException:
        draft.abandon()
        raise
    draft.commit()


@contextmanager
def whole_file(final: Path) -> Iterator[BinaryIO]:
    """A `Draft`, opened for writing; committed at the end, abandoned after an exception."""
    with whole_path(final) as path, path.open("wb") as file:
        yield file


def write_json(path: Path, value: Any) -> None:
    """Write a report whole or not at all."""
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write a text, in UTF-8, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable, whoever wrote them."""
    _fsync(path, 0)


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable, on every file system that can."""
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
    """Make or empty a file and lock it; returns the descriptor that holds the lock until it is closed."""
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
        os.close(fd)  # its writer renamed it between our open and our lock: it is whole now, and not ours


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OperatorError(f"{path}: another process is writing it") from error
    except OSError:
        pass  # a file system without locks: what is written is whole all the same


def _is_still(fd: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), there)


# ---- reading what somebody else may have made


def open_regular(path: Path, max_bytes: int | None = None, *, follow: bool = True) -> BufferedReader:
    """Open a file for reading that somebody else may have made. A pipe, a device or a socket is refused, without
    waiting for it.

    Args:
        path: the file.
        max_bytes: a larger file is refused; None where a file may be of any size.
        follow: whether a symbolic link is followed.

    Raises:
        OSError: it cannot be opened, is no regular file, or is larger; `strerror` says what.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags)
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if max_bytes is not None and found.st_size > max_bytes:
            raise _too_large(path, max_bytes)
    except BaseException:
        os.close(fd)
        raise
    return os.fdopen(fd, "rb")


def read_regular_bytes(path: Path, max_bytes: int = MAX_WHOLE_BYTES, *, follow: bool = True) -> bytes:
    """All bytes of a file that somebody else may have made; arguments and errors of `open_regular`."""
    with open_regular(path, max_bytes, follow=follow) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it has grown since it was opened
        raise _too_large(path, max_bytes)
    return data


def read_regular_text(path: Path, max_bytes: int = MAX_WHOLE_BYTES, *, errors: str = "strict") -> str:
    """All of a text that somebody else may have made, its line ends as `Path.read_text` gives them.

    Raises:
        OSError: as from `open_regular`.
        ValueError: it is not UTF-8 (unless `errors` says otherwise).
    """
    data = read_regular_bytes(path, max_bytes)
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors=errors).read()


def open_append(path: Path) -> int:
    """Open a log or a journal for appending, and make it for its owner alone if it is missing; returns the descriptor.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return fd


def refuse_special_files(folder: Path) -> None:
    """Refuse a model's folder in which another library would wait for a pipe, or read a device without end.

    Raises:
        OperatorError: a file by the name of a config, tokenizer or weights is no regular file.
    """
    try:
        entries = [entry for entry in os.scandir(folder) if Path(entry.name).suffix in MODEL_SUFFIXES]
    except OSError:
        return  # whoever reads the folder says what is wrong with it
    for entry in entries:
        with suppress(OSError):  # a link that leads nowhere is as good as no file
            mode = entry.stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise OperatorError(f"{entry.path} is not a regular file", "name a folder as save_pretrained writes it")


def read_into(path: Path, offset: int, place: memoryview) -> None:
    """Fill a place with a file's bytes, from an offset on.

    Raises:
        EOFError: the file ends before the place is full.
        OSError: as from `open_regular`.
    """
    with open_regular(path) as file:
        while place:  # one read returns at most 2 GiB
            count = os.preadv(file.fileno(), [place], offset)
            if not count:
                raise EOFError(f"{path} was cut short while it was read")
            place, offset = place[count:], offset + count


def _too_large(path: Path, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes", str(path))


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
