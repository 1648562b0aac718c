"""The recipes that an operator can choose: shipped recipes, their own, and those of the current folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recipes.problems import OperatorError, Problem, RecipeError
from recipes.shipped import shipped_recipes
from recipes.toml_read import read_text

SHIPPED, OWN, HERE = "shipped", "yours", "here"
MAX_RECIPES = 500
"""Maximum number of recipes listed per folder."""


@dataclass(frozen=True)
class RecipeEntry:
    """A recipe file in a list. Its texts are not safe to print before `safe_text`."""

    path: Path
    group: str
    name: str
    description: str = ""
    stages: tuple[tuple[str, str], ...] = ()
    problems: tuple[Problem, ...] = ()
    hides_shipped: bool = False
    """whether it is the operator's copy of a shipped recipe, which is then not listed"""


def own_folder() -> Path:
    """The folder for edited recipes: $XDG_CONFIG_HOME/cockpit/recipes."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return (Path(config).expanduser() / "cockpit" / "recipes").absolute()


class Shelf:
    """All recipes that can be chosen; a file is read again only if it has changed."""

    def __init__(self, here: Path | None = None) -> None:
        self._here = (here or Path.cwd()).absolute()
        self._known: dict[Path, tuple[tuple[int, int], RecipeEntry]] = {}

    def entries(self) -> list[RecipeEntry]:
        """The shipped recipes, the operator's own, then those of the current folder; each file once.

        An own recipe hides the shipped one of the same file name, and is marked.
        """
        found: list[RecipeEntry] = []
        seen: set[Path] = set()
        own, shipped = _tomls(own_folder()), shipped_recipes()
        hidden = {path.name for path in own} & {path.name for path in shipped}
        places = [
            (SHIPPED, [path for path in shipped if path.name not in hidden]),
            (OWN, own),
            (HERE, [*_tomls(self._here / "recipes"), *_tomls(self._here)]),
        ]
        for group, paths in places:
            for path in paths:
                real = path.resolve()
                if real in seen:
                    continue
                seen.add(real)
                entry = self._entry(path, group)
                if entry is not None:
                    found.append(replace(entry, hides_shipped=group == OWN and path.name in hidden))
        return found

    def _entry(self, path: Path, group: str) -> RecipeEntry | None:
        try:
            status = path.stat()
        except OSError:
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            entry = read_entry(path, group)
            if entry is None:
                return None
            known = self._known[path] = (stamp, entry)
        return known[1]


def read_entry(path: Path, group: str) -> RecipeEntry | None:
    """One recipe file; None for another TOML file, without stages and schema, such as `pyproject.toml`."""
    try:
        text = read_text(path)
    except RecipeError as error:
        return RecipeEntry(path, group, path.stem, problems=tuple(error.problems))
    except OperatorError as error:
        return RecipeEntry(path, group, path.stem, problems=(Problem(path, 0, "", error.message),))
    if group == HERE and not _looks_like_a_recipe(text):
        return None
    from recipes.load import (
        load_recipe_text,
    )  # loading the schema takes a tenth of a second: imported after the first paint

    try:
        # A shipped recipe may be for data that its reader has yet to put in place.
        recipe = load_recipe_text(text, path, paths_here=group != SHIPPED).recipe
    except RecipeError as error:
        return RecipeEntry(path, group, path.stem, problems=tuple(error.problems))
    stages = tuple((stage.name, str(stage.kind)) for stage in recipe.stage)
    return RecipeEntry(path, group, recipe.name, recipe.description, stages)


def copy_path(name: str, taken: Sequence[Path] = ()) -> Path:
    """The path for a copy of a shipped recipe; if the name is taken, -2, -3, … is appended."""
    folder = own_folder()
    number = 1
    while True:
        path = folder / (f"{name}.toml" if number == 1 else f"{name}-{number}.toml")
        if not path.exists() and path not in taken:
            return path
        number += 1


def _tomls(folder: Path) -> list[Path]:
    try:
        names = sorted(e.name for e in os.scandir(folder) if e.name.endswith(".toml") and not e.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names[:MAX_RECIPES]]


def _looks_like_a_recipe(text: str) -> bool:
    return any(line.strip().startswith(("schema", "[[stage]]", "[[ stage")) for line in text.splitlines())
