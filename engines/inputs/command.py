"""The files of a command whose output is a stage's data: what of the command can change without the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

OUT_WORD = "{out}"
"""In an argument, it becomes the folder that the command writes its files into."""


def files_of_command(command: Sequence[str], folder: Path) -> list[tuple[str, Path]]:
    """The words of a command that name existing files, with the files, ordered by name.

    Args:
        command: the program and its arguments.
        folder: the working directory, for relative words.
    """
    found = {}
    for word in command:
        if not word or OUT_WORD in word or "\0" in word or ("/" not in word and word == command[0]):
            continue  # a bare first word is looked up in PATH
        file = folder / word
        try:
            if file.is_file():
                found[word] = file
        except OSError:
            continue
    return sorted(found.items())
