"""Check the folders that a recipe's stages place their files into; at launch and for `cockpit check`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from recipes.load import LoadedRecipe
from recipes.problems import Problem, printable, shown
from recipes.stages.fields import FilesFields


def output_problems(loaded: LoadedRecipe) -> list[Problem]:
    """The problems with `output_dir`: files that would be replaced, a folder that cannot be written, one of an input,
    or one folder for two stages. Each at its line."""
    problems: list[Problem] = []
    seen: dict[Path, str] = {}
    for stage in loaded.recipe.stage:
        if not isinstance(stage, FilesFields) or stage.output_dir is None:
            continue
        folder = Path(stage.output_dir)
        inputs = [ref.path for ref in loaded.graph.inputs[stage.name].values() if ref.path is not None]
        found = [*_of_folder(folder, inputs, overwrite=stage.overwrite_output_dir)]
        if folder in seen:
            found.append((f"stage {seen[folder]} has the same folder", "choose a folder for each stage"))
        seen[folder] = stage.name
        line = loaded.line_of(stage.name, "output_dir")
        problems += [
            Problem(loaded.path, line, f"{stage.name}.output_dir", message, shown(str(folder)), hint=hint)
            for message, hint in found
        ]
    return problems


def _of_folder(folder: Path, inputs: list[Path], *, overwrite: bool) -> Iterator[tuple[str, str]]:
    if any(folder == path or path in folder.parents for path in inputs):
        yield "this is the folder of an input", "choose another folder"
        return
    if os.path.lexists(folder) and not folder.is_dir():
        yield "this is not a folder", "choose another name"
        return
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield f"{printable(str(nearest), 400)} cannot be written", "choose another folder"
        return
    there = sorted(name for name in _names(folder) if not name.startswith("."))
    if there and not overwrite:
        listed = ", ".join(printable(name, 80) for name in there[:4]) + (", …" if len(there) > 4 else "")
        hint = "choose a new or empty folder, or replace files of equal names: --force (overwrite_output_dir = true)"
        yield f"the folder has files: {listed}", hint


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
