"""The file that RECIPE names: a path, or the name of a shipped recipe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cockpit.launching.run_outputs import outputs_in
from recipes.load import LoadedRecipe, load_recipe
from recipes.problems import OperatorError, closest, printable
from recipes.shipped import shipped_recipe, shipped_recipes

__all__ = ["find_recipe", "load_wanted", "shipped_recipes"]


def find_recipe(wanted: str) -> Path:
    """The file of a recipe.

    Raises:
        OperatorError: there is no such file.
    """
    path = Path(wanted).expanduser()
    if path.is_file():
        return path
    shipped = None if os.sep in wanted else shipped_recipe(wanted)
    if shipped is not None:
        return shipped
    names = [file.stem for file in shipped_recipes()]
    hint = closest(path.stem, names)
    if path.is_dir():
        raise OperatorError(f"RECIPE — {printable(wanted, 400)} is a folder; allowed: a recipe file", hint)
    raise OperatorError(
        f"RECIPE — no file {printable(wanted, 400)}; shipped recipes: {', '.join(names)}",
        hint or "give a path, or the name of a shipped recipe",
    )


def load_wanted(
    wanted: str, sets: Sequence[str] = (), runs: Path | None = None, *, paths_here: bool = True
) -> LoadedRecipe:
    """Load the recipe that RECIPE names; problems show the path as given, the result has the absolute path.

    Args:
        wanted: RECIPE, as typed.
        sets: overrides.
        runs: the folder of runs, for inputs that are RUN:STAGE.
        paths_here: whether the recipe's files and folders must exist here; no for a run on another machine.

    Raises:
        OperatorError: there is no such file, or the recipe has problems.
    """
    outputs = None if runs is None else outputs_in(runs)
    loaded = load_recipe(find_recipe(wanted), sets, outputs, paths_here=paths_here)
    return replace(loaded, path=loaded.path.absolute())
