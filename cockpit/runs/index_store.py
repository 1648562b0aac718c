"""Where side indexes lie: in a private folder of this user's cache, never in the run, so that looking at a run writes
nothing into it. An index is found by the device and inode of the run's journal.
"""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cockpit.runs.side_index import decode_index, encode_index
from cockpit.runs.state import RunState
from cockpit.runs.tail import RunTail
from engines.files import open_regular, write_cache
from engines.run_dir.paths import RunDir

INDEX_AFTER_BYTES = 4 << 20
"""A reader that has read this much since the last index stores a new one."""
MOST_BYTES = 1 << 30
"""All indexes together; the ones that were stored first are removed."""
_SUFFIX = ".index"


def index_folder() -> Path | None:
    """The private folder of this user's indexes: $XDG_CACHE_HOME/cockpit/index; None if it is not private."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(base).expanduser() / "cockpit" / "index"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError):
        return None
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.getuid()
    return folder if private else None


def index_path(run: RunDir) -> Path | None:
    """The path of the run's index; None without a journal or a folder."""
    folder = index_folder()
    try:
        status = run.journal.stat()
    except OSError:
        return None
    return None if folder is None else folder / f"{status.st_dev:x}-{status.st_ino:x}{_SUFFIX}"


class Indexed(NamedTuple):
    """The state in an index, a tail that continues after it, and the file: the state's columns are mapped from it."""

    state: RunState
    tail: RunTail
    file: mmap.mmap

    def forget_pages(self) -> None:
        """Free the memory of the parts of the file that were used; they are read again when they are needed."""
        self.file.madvise(mmap.MADV_DONTNEED)


def load_index(run: RunDir, *, live: bool = False) -> Indexed | None:
    """What the run's index says; None without an index that fits the journals.

    Args:
        run: the run.
        live: also read the run's live stream.
    """
    path = index_path(run)
    if path is None:
        return None
    try:
        with open_regular(path, MOST_BYTES, follow=False) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = decode_index(memoryview(data))
    except (OSError, ValueError):  # no index; an empty file cannot be mapped
        return None
    if found is None:
        return None
    state, marks = found
    tail = RunTail(run.root, live=live)
    if not tail.start_at(marks, {writer.name: writer.numbers for writer in state.writers}):
        tail.close()
        return None
    state.unreadable, state.unknown = tail.bad, tail.unknown
    return Indexed(state, tail, data)


def store_index(run: RunDir, state: RunState, tail: RunTail) -> bool:
    """Store an index of what was read so far; False if the place does not allow it, or nothing can be written."""
    marks = tail.marks({writer.name: writer.numbers.next for writer in state.writers})
    path = index_path(run)
    data = encode_index(state, marks) if marks is not None and path is not None else None
    if data is None or path is None:
        return False
    try:
        _make_room(path.parent, len(data[1]))
        write_cache(path, *data)
    except OSError:
        return False
    return True


def _make_room(folder: Path, wanted_bytes: int) -> None:
    """Remove the oldest indexes until this one fits among them."""
    found = []
    for entry in os.scandir(folder):
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            found.append((status.st_mtime_ns, status.st_size, entry.path))
    total = wanted_bytes + sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MOST_BYTES:
            return
        with suppress(OSError):
            Path(path).unlink()
        total -= size
