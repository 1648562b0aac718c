"""Folders that a training stage reads."""

from __future__ import annotations

from pathlib import Path

from engines.host import Input
from recipes.problems import OperatorError


def input_folder(given: Input) -> Path:
    """The folder of an input.

    Raises:
        OperatorError: it is a hub id that is not on this machine, or the folder is not there.
    """
    if given.path is None:
        raise OperatorError(
            f"{given.field} = {given.name!r} is a hub id, and it is not in this machine's cache",
            f"download it first (hf download {given.name}), or name a folder: ./models/{given.name.split('/')[-1]}",
        )
    if not given.path.is_dir():
        raise OperatorError(f"{given.field}: {given.path} is not a folder", "give the folder itself, or a stage's name")
    return given.path
