"""Where models are: folders that the operator names, the hub's cache, and the outputs of own runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cockpit.models.look import FoundModel, kind_of, look
from cockpit.runs.find import run_ids
from engines.inputs.hub_cache import commit_of, hub_cache
from engines.run_dir.paths import RunDir

ROOTS_VARIABLE = "COCKPIT_MODELS"
"""Folders with models, separated as in PATH."""
MAX_DEPTH = 4
MAX_FOLDERS = 20_000
"""Folders that one search opens; what lies behind them is not listed, and the list says so."""
_PREFIX = "models--"
_SKIPPED = frozenset({".git", "__pycache__", "node_modules", "checkpoints"})


class Search:
    """One search, with its bound.

    Attributes:
        found: models, adapters and GGUF files, each place once.
        whole: every folder was opened.
    """

    def __init__(self) -> None:
        self.found: list[FoundModel] = []
        self.whole = True
        self._left = MAX_FOLDERS
        self._seen: set[Path] = set()

    def folders(self, roots: Sequence[Path]) -> None:
        """What lies in folders, down to a depth; links to folders are not followed, except for a root itself."""
        for root in roots:
            for place in self._inside(root, MAX_DEPTH):
                self._add(str(place), place)

    def cache(self) -> None:
        """Every revision of every model in the hub's cache, by its id; the one of main first."""
        home = hub_cache()
        for entry in _entries(home):
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                repository = Path(entry.path)
                name = entry.name.removeprefix(_PREFIX).replace("--", "/", 1)
                main = commit_of(repository, "main")
                commits = [Path(one.path) for one in _entries(repository / "snapshots") if one.is_dir()]
                for commit in sorted(commits, key=lambda place: (place.name != main, place.name)):
                    self._add(name if commit.name == main else f"{name}@{commit.name}", commit, commit.name)
                    for file in _gguf_files(commit):
                        self._add(str(file), file, commit.name)

    def runs(self, root: Path) -> None:
        """The outputs of the stages of own runs, as RUN:STAGE."""
        for run in map(RunDir, (root / name for name in run_ids(root))):
            for stage in _entries(run.stages):
                out = run.out(stage.name)
                if kind_of(out):
                    self._add(f"{run.id}:{stage.name}", out)
                for file in _gguf_files(out):
                    self._add(str(file), file)

    def _inside(self, place: Path, depth: int) -> Iterator[Path]:
        if kind_of(place):
            yield place
        if not place.is_dir():
            return
        self._left -= 1
        if self._left < 0:
            self.whole = False
            return
        for entry in _entries(place):
            path = Path(entry.path)
            if entry.name.endswith(".gguf") and entry.is_file():
                yield path
            elif depth and entry.is_dir(follow_symlinks=False) and entry.name not in _SKIPPED:
                yield from self._inside(path, depth - 1)

    def _add(self, name: str, place: Path, revision: str = "") -> None:
        if place.suffix == ".gguf" and _is_later_part(place):
            return
        real = Path(os.path.realpath(place))
        if real not in self._seen and kind_of(place):
            self._seen.add(real)
            self.found.append(look(name, place, revision))


def configured_roots() -> list[Path]:
    """The folders that the environment names."""
    given = os.environ.get(ROOTS_VARIABLE, "")
    return [Path(one).expanduser().absolute() for one in given.split(os.pathsep) if one]


def _is_later_part(place: Path) -> bool:
    """Whether a file is a part of a split model other than the first, by its name."""
    end = place.stem.rpartition("-of-")
    number = end[0].rpartition("-")[2]
    return bool(end[1]) and number.isdecimal() and int(number[:9]) > 1


def _gguf_files(folder: Path) -> list[Path]:
    """GGUF files of a folder; none of one that a rerun has renamed or that was removed since the look."""
    return [Path(entry.path) for entry in _entries(folder) if entry.name.endswith(".gguf")]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order of their names; none of one that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
