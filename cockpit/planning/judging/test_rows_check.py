"""Test rows of evaluate stages that are in a file now: whether they can be asked and judged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from engines.data.readers.lines import GZ, opened
from engines.files import CHUNK_BYTES
from engines.judging.checks import Judges
from engines.judging.test_file import read_tests
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, printable
from recipes.stages.evaluate import EvaluateStage

_MOST_BYTES = 64 << 20
"""A larger file is read when its stage runs: a check takes seconds."""


def test_row_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Rows that the stages would refuse, each at the line of `test_data`."""
    found = []
    for stage, file in _given(loaded):
        line = loaded.line_of(stage.name, "test_data")
        if not file.is_file():
            message = f"{printable(str(file), 400)} is not a file"
            hint = "give a file, or a folder with the file of its split"
            found.append(Problem(loaded.path, line, f"{stage.name}.test_data", message, hint=hint))
            continue
        judges = Judges(command=stage.judge_command)
        try:
            read_tests(file, stage.checks, judges)
        except OperatorError as error:
            found += [
                Problem(loaded.path, line, f"{stage.name}.test_data", message, hint=error.hint)
                for message in error.message.splitlines()
            ]
        finally:
            judges.close()
    return found


def _given(loaded: LoadedRecipe) -> Iterator[tuple[EvaluateStage, Path]]:
    """Stages with the file of their tests, where this machine alone does not decide what can judge them."""
    for stage in loaded.recipe.stage:
        if not isinstance(stage, EvaluateStage) or stage.judge_url is not None or stage.allow_code_execution:
            continue
        given = loaded.graph.inputs[stage.name].get("test_data")
        if given is None or given.path is None or stage.tests != "rows":
            continue
        if not os.path.exists(given.path):  # noqa: PTH110 - False where a folder above may not be read
            continue  # refused as an input
        file = given.path / f"{stage.split}.jsonl" if given.path.is_dir() else given.path
        if not file.is_file() or (file.stat().st_size <= _MOST_BYTES and not _unpacks_to_more(file)):
            yield stage, file


def _unpacks_to_more(file: Path) -> bool:
    """A packed file of the same size can have a thousand times the rows."""
    if not file.name.endswith(GZ):
        return False
    left = _MOST_BYTES
    try:
        with opened(file) as content:
            while left >= 0 and (data := content.read(CHUNK_BYTES)):
                left -= len(data)
    except OperatorError:
        return False  # whoever reads its rows says what is wrong
    return left < 0
