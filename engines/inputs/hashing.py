"""SHA-256 of many files in parallel, with progress, and a cache that saves reading large files again.

The cache maps (device, inode, size, mtime, ctime) to a hash. It never decides: `hashes_of(…, cached=False)` reads every
byte, and a difference is only reported after such a reading. A file that changed moments ago is not stored, because a
second change within the clock's resolution would leave the same times.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engines.files import file_sha256, read_regular_bytes, write_cache
from engines.json_text import parse_json

THREADS = 4
"""More do not help: one core hashes faster than a disk reads, and other stages may train on this machine."""
CACHED_BYTES = 4 * 1024 * 1024
"""A smaller file is read faster than its entry in the cache."""
SETTLED_S = 2.0
MAX_ENTRIES = 4096
WAIT_S = 0.1
_CACHE_FOLDER = "sha256"


class FileHash(NamedTuple):
    """A file's size in bytes and its SHA-256; both empty for a file that cannot be read, with the reason."""

    bytes: int
    sha256: str
    problem: str = ""


class _CancelledError(Exception):
    """Another file failed, or the caller's progress function raised."""


def hashes_of(
    files: Sequence[Path],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    cached: bool = True,
) -> list[FileHash]:
    """The hashes of these files, in their order.

    Args:
        files: regular files; one that cannot be read gets a `problem`.
        progress: called in this thread with bytes done and bytes in total; what it raises ends the work.
        cached: use the cache of this user.
    """
    work = _Work(files, cached=cached)
    if work.total <= CACHED_BYTES:  # threads cost more than they save
        return [work.hash(index) for index in range(len(files))]
    pool = ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0)), len(files)), thread_name_prefix="sha256")
    try:
        tasks = [pool.submit(work.hash, index) for index in range(len(files))]
        waiting = set(tasks)
        while waiting:
            _, waiting = wait(waiting, timeout=WAIT_S, return_when=FIRST_EXCEPTION)
            progress(min(work.done, work.total), work.total)
        return [task.result() for task in tasks]
    finally:
        work.cancelled.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Work:
    """The shared state of the threads."""

    def __init__(self, files: Sequence[Path], *, cached: bool) -> None:
        self.files = files
        self.cancelled = threading.Event()
        self._cached = cached
        self._lock = threading.Lock()
        self._sizes = [_size(file) for file in files]
        self.total = sum(self._sizes)
        self.done = 0

    def hash(self, index: int) -> FileHash:
        file = self.files[index]
        try:
            before = file.stat()
            known = _stored(before) if self._cached and before.st_size >= CACHED_BYTES else None
            if known is None:
                known = self._read(file)
                if before.st_size >= CACHED_BYTES and _times(file.stat()) == _times(before):
                    _store(before, known)
            else:
                self._add(before.st_size)
            return FileHash(before.st_size, known)
        except OSError as error:
            return FileHash(0, "", f"cannot be read: {error.strerror or error}")

    def _read(self, file: Path) -> str:
        seen = 0

        def advance(done: int) -> None:
            nonlocal seen
            if self.cancelled.is_set():
                raise _CancelledError
            self._add(done - seen)
            seen = done

        return file_sha256(file, advance)

    def _add(self, count: int) -> None:
        with self._lock:
            self.done += count


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _times(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def cache_folder() -> Path:
    """The folder of the hashes, for this user only: in $XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cockpit" / _CACHE_FOLDER


def _entry(status: os.stat_result) -> Path:
    return cache_folder() / f"{status.st_dev:x}-{status.st_ino:x}"


def _stored(status: os.stat_result) -> str | None:
    """The stored hash of a file with this status; None without one."""
    try:
        folder = cache_folder().stat()
        if folder.st_uid != os.getuid() or folder.st_mode & 0o022:
            return None
        value = parse_json(read_regular_bytes(_entry(status), 4096, follow=False))
        sha256 = value["sha256"] if value["file"] == _times(status) else None
        return sha256 if isinstance(sha256, str) and len(sha256) == 64 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(status: os.stat_result, sha256: str) -> None:
    settled_s = time.time() - max(status.st_mtime, status.st_ctime)  # noqa: TID251 - compared with times of files
    if settled_s < SETTLED_S:
        return
    with suppress(OSError, RuntimeError):  # no home, a full disk: the file is read again next time
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_room(folder)
        write_cache(_entry(status), json.dumps({"file": _times(status), "sha256": sha256}).encode())


def _make_room(folder: Path) -> None:
    entries = list(os.scandir(folder))
    if len(entries) >= MAX_ENTRIES:
        for old in sorted(entries, key=lambda entry: entry.stat().st_mtime_ns)[: MAX_ENTRIES // 4]:
            Path(old.path).unlink(missing_ok=True)
