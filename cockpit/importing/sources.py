"""The data of a configuration: where it is, and how its rows are read, as fields of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cockpit.importing.draft import DATA, TUNED, Draft
from recipes.graph import HUB_ID

ONE_SOURCE = "one source of data per stage; give a file or a folder that has all of them"
NO_IMAGES = "pictures, sound and videos are not read"
_UP = 6
"""Folders above the configuration in which its relative paths are looked for."""


@dataclass
class Source:
    """One set of rows: the fields `data`, `format`, `columns` and `ignore_keys` of the stage that reads it."""

    data: str
    format: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    ignore_keys: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        found: dict[str, Any] = {"data": self.data}
        for name in ("format", "columns", "ignore_keys"):
            if value := getattr(self, name):
                found[name] = value
        return found


def find_path(draft: Draft, given: str, *folders: str) -> Path | None:
    """A file or folder that a configuration names, in the present folder, beside the file, or in a folder above it.

    Args:
        draft: the recipe in the making.
        given: the path in the configuration.
        folders: parts that come before the path.
    """
    try:
        wanted = Path(*folders, given).expanduser()
    except RuntimeError:  # the home of a user who does not exist
        return None
    if wanted.is_absolute():
        return wanted if _exists(wanted) else None
    beside = draft.config.path.absolute().parent
    for folder in dict.fromkeys((Path.cwd(), beside, *list(beside.parents)[:_UP])):
        if _exists(folder / wanted):
            return folder / wanted
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a folder that may not be entered
        return False


def place(draft: Draft, given: str, *folders: str) -> str:
    """The place as a recipe names it: an absolute path if it exists, a hub id, or the path as given."""
    found = find_path(draft, given, *folders)
    if found is not None:
        return str(found)
    if not folders and HUB_ID.fullmatch(given):
        return given
    wanted = Path(*folders, given)
    return str(wanted) if wanted.is_absolute() or given.startswith("~") else f"./{wanted}"


def put_source(draft: Draft, source: Source) -> str:
    """Give the source to the prepare stage, or to the finetune stage without one; returns what a field refused."""
    stage = DATA if DATA in draft.stages else TUNED
    problems = [problem for name, value in source.fields().items() if (problem := draft.put(f"{stage}.{name}", value))]
    join_stages(draft)
    return "; ".join(problems)


def join_stages(draft: Draft) -> None:
    """Let the finetune stage read what the prepare stage writes, which holds out no more than the configuration says:
    also where the data of the configuration was not found."""
    if DATA not in draft.stages:
        return
    draft.put(f"{DATA}.test_fraction", 0.0)
    if not {"val_fraction", "val_rows"} & draft.stages[DATA].keys():
        draft.put(f"{DATA}.val_fraction", 0.0)
    draft.put(f"{TUNED}.data", DATA)
