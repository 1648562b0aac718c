"""A split of a messages folder: find its file, read its rows one at a time, report the first bad row by file and
line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engines.data.readers.formats import CONTAINERS, Container, shape_of
from engines.data.readers.row import MessageRow, problem_of
from recipes.problems import OperatorError


def read_messages(path: Path, split: str) -> Iterator[MessageRow]:
    """The rows of one split, in file order.

    Args:
        path: a messages folder.
        split: train, val or test.

    Raises:
        OperatorError: the file is missing, or a row is malformed; the message begins `file:line`.
    """
    container, file = split_file(path, split)
    for where, value in container.values(file):
        shape = shape_of(value)
        try:
            row = shape.row(value)
        except ValueError as error:
            message = f"{where}: not a row of {shape.name}: {error}"
            raise OperatorError(message, f"a row has the form {shape.example}") from error
        if problem := problem_of(row):
            raise OperatorError(f"{where}: {problem}", f"a row has the form {shape.example}")
        yield row


def split_file(path: Path, split: str) -> tuple[Container, Path]:
    """The file of a split and its container.

    Raises:
        OperatorError: the folder has no file for the split.
    """
    candidates = [(container, path / f"{split}{container.suffix}") for container in CONTAINERS]
    for container, file in candidates:
        if file.is_file():
            return container, file
    names = " or ".join(file.name for _, file in candidates)
    raise OperatorError(
        f"{candidates[0][1]} does not exist", f"a messages folder contains {names}; choose another split or folder"
    )
