"""What a run takes on the disk, by kind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from engines.run_dir.paths import Part, RunDir, part_of

PARTS: tuple[Part, ...] = get_args(Part)
MAX_ENTRIES = 1_000_000
"""Entries of a run after which the walk ends: its sizes are then lower bounds."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a run's files by kind; `complete` is False if a folder could not be read."""

    parts: dict[Part, int]
    complete: bool = True

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())


def sizes_of(run: RunDir) -> Sizes:
    """Measure a run. Links count as themselves and are not followed; pipes and devices count nothing."""
    parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
    seen: set[tuple[int, int]] = set()
    complete = True
    for count, (relative, status) in enumerate(_files(run.root, ())):
        if status is None or count >= MAX_ENTRIES:
            complete = False
            if status is None:
                continue
            break
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        parts[part_of(relative)] += status.st_size
    return Sizes(parts, complete)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(status.st_size for _, status in _files(folder, ()) if status is not None)


def _files(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], os.stat_result | None]]:
    """Every file below a folder with its path in parts and its status; None for a folder that cannot be read."""
    todo = [(folder, above)]
    while todo:
        here, parts = todo.pop()
        try:
            with os.scandir(here) as entries:
                found = list(entries)
        except OSError:
            yield parts, None
            continue
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                todo.append((Path(entry.path), (*parts, entry.name)))
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                try:
                    yield (*parts, entry.name), entry.stat(follow_symlinks=False)
                except OSError:
                    yield (*parts, entry.name), None
