"""Writing a recipe file: completely or not at all, and never over a change that another program made meanwhile."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from cockpit.forms.shelf import own_folder
from engines.files import read_regular_bytes, write_durably
from recipes.problems import OperatorError
from recipes.shipped import shipped_recipes


class ChangedOnDiskError(OperatorError):
    """The file changed since it was opened. `text` is its new content; None if it was deleted or cannot be read."""

    def __init__(self, path: Path, text: str | None) -> None:
        super().__init__(f"{path} changed on disk since it was opened", "save a copy, or reload it")
        self.text = text


def is_read_only(path: Path) -> bool:
    """Whether the recipe is shipped with Cockpit, or its file is not writable."""
    shipped = {file.resolve() for file in shipped_recipes()}
    return path.resolve() in shipped or (path.exists() and not os.access(path, os.W_OK))


def save_recipe(path: Path, text: str, opened: str) -> None:
    """Write the text to the file, unless the file changed since it was opened.

    Args:
        path: the file; links are followed.
        text: the new content.
        opened: the file's content when it was opened or last saved.

    Raises:
        ChangedOnDiskError: the file's content differs from `opened`; nothing is written.
        OperatorError: the file cannot be written.
    """
    real = path.resolve()
    try:
        held: str | None = read_regular_bytes(real).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        held = None
    if held != opened:
        raise ChangedOnDiskError(path, held)
    _write(real, text, stat.S_IMODE(real.stat().st_mode))


def save_copy(path: Path, text: str) -> None:
    """Write the text to a new file.

    Raises:
        OperatorError: the file exists, or cannot be written.
    """
    if path.exists():
        raise OperatorError(f"{path} already exists", "choose another name")
    try:
        if path.parent == own_folder():
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"could not create {path.parent}: {error.strerror or error}") from error
    _write(path, text, 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise OperatorError(f"could not write {path}: {error.strerror or error}") from error
    with suppress(OSError):
        path.chmod(mode)
