"""Reads a file of limits: TOML with one table `[ship]`, as a recipe has it."""

from __future__ import annotations

from pathlib import Path

from recipes.explain import check_table
from recipes.problems import Problem, RecipeError
from recipes.schema import Recipe
from recipes.ship.limits import ShipLimits
from recipes.source import Source
from recipes.stages.fake import FakeStage
from recipes.toml_read import parse, read_text
from recipes.toml_scan import KeyPath

_TABLE = "ship"


def read_limits(path: Path) -> ShipLimits:
    """The limits of a file.

    Raises:
        OperatorError: it cannot be read.
        RecipeError: every problem in it, each with its line.
    """
    data, index = parse(read_text(path), path)
    source = Source(path, index, data)
    problems: dict[Problem, None] = {}
    for key in data:
        if key != _TABLE:
            problems[source.problem((key,), "a file of limits has no such key", allowed=f"a table [{_TABLE}]")] = None
    table = data.get(_TABLE, {})

    def report(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
        problems[source.problem(loc, message, got, allowed, hint)] = None

    check_table(Recipe, {"schema": 1, "name": "limits", "stage": [FakeStage(name="x")], _TABLE: table}, None, report)
    if problems:
        raise RecipeError(list(problems))
    return ShipLimits.model_validate(table)
