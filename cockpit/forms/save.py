"""Writing a recipe file: whole or not at all, and never over what somebody else wrote meanwhile."""

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
    """The file no longer holds what was opened. `text` is what it holds now, None when it is gone or unreadable."""

    def __init__(self, path: Path, text: str | None) -> None:
        super().__init__(f"{path} changed on disk since it was opened", "save a copy, or reload it")
        self.text = text


def is_read_only(path: Path) -> bool:
    """Whether the recipe is a shipped one, or may not be written."""
    shipped = {file.resolve() for file in shipped_recipes()}
    return path.resolve() in shipped or (path.exists() and not os.access(path, os.W_OK))


def save_recipe(path: Path, text: str, opened: str) -> None:
    """Put the text into the file, unless the file changed since it was opened.

    Args:
        path: the file; a link is followed.
        text: what to write.
        opened: what the file held when it was opened or last saved.

    Raises:
        ChangedOnDiskError: it holds something else now; nothing is written.
        OperatorError: it cannot be written.
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
    """Put the text into a new file.

    Raises:
        OperatorError: there is such a file, or it cannot be written.
    """
    if path.exists():
        raise OperatorError(f"{path} exists already", "choose another name")
    try:
        if path.parent == own_folder():
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"{path.parent} cannot be made: {error.strerror or error}") from error
    _write(path, text, 0o644)


def _write(path: Path, text: str, mode: int) -> None:
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise OperatorError(f"{path} cannot be written: {error.strerror or error}") from error
    with suppress(OSError):
        path.chmod(mode)
