"""The files of a command whose output is a stage's data: what of the command can change without the recipe."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path

from recipes.problems import printable

OUT_WORD = "{out}"
"""In an argument, it becomes the folder that the command writes its files into."""
PYTHON = ("python", "python3")
"""First words of a command that mean the interpreter of the stage."""
_ANY_PYTHON = re.compile(r"python[0-9.]*")
_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
"""Options of Python whose value may be the next word."""


def missing_of_command(command: Sequence[str], folder: Path, *, own_python: bool = True) -> str:
    """What a command needs that is not there: its program, or the script that Python would read; empty if nothing is.

    Args:
        command: the program and its arguments.
        folder: the working directory.
        own_python: whether the interpreter of the stage is this process's own, which knows the modules that it has.
    """
    first = command[0]
    if first not in PYTHON and program_of(first, folder) is None:
        return f"{printable(first, 200)!r} is not a program on this machine"
    script = _python_script(command) if _ANY_PYTHON.fullmatch(Path(first).name) else None
    if script is not None and "\0" not in script and not (folder / script).exists():
        return f"{printable(script, 200)!r} does not exist in {printable(str(folder), 300)}"
    module = _python_module(command) if first in PYTHON and own_python else None
    if module is not None and not _is_there(module.partition(".")[0], folder):
        where = printable(str(folder), 300)
        return f"Python's -m finds no module {printable(module, 200)!r}, neither in {where} nor installed"
    return ""


def program_of(word: str, folder: Path) -> str | None:
    """The path of a command's first word: inside the folder if it has a slash, else in PATH. None without one."""
    return shutil.which(str(folder / word) if "/" in word else word)


def _python_script(command: Sequence[str]) -> str | None:
    """The script among the arguments of Python; None for a module, code or input, and where it is not certain."""
    words = iter(command[1:])
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return None if OUT_WORD in word else word
        elif not word.startswith(("--", *_WITH_VALUE)) and (word == "-" or {"c", "m"} & set(word)):
            return None
    return None


def _python_module(command: Sequence[str]) -> str | None:
    """The module that Python would run; None without one, and where it is not certain."""
    for word, following in pairwise(command[1:]):
        if word == "-m":
            return following if OUT_WORD not in following and following.replace(".", "").isidentifier() else None
        if not word.startswith("-") or word.startswith(("--", *_WITH_VALUE)) or {"c", "I", "P"} & set(word):
            return None
    return None


def _is_there(name: str, folder: Path) -> bool:
    """Whether Python finds a top-level module: in the working directory, in PYTHONPATH, or installed."""
    places = [folder, *(Path(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place)]
    if any((place / f"{name}.py").is_file() or (place / name).is_dir() for place in places):
        return True
    return name in sys.builtin_module_names or PathFinder.find_spec(name) is not None


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
