"""The row of the form to which a problem belongs, found by the problem's line, else by its key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cockpit.forms.recipe_data import RECIPE
from recipes.problems import Problem
from recipes.toml_scan import KeyPath, TomlIndex

ByRow: TypeAlias = dict[tuple[int, str], list[Problem]]
ByPlace: TypeAlias = dict[int, list[Problem]]


def attach(
    problems: Sequence[Problem],
    index: TomlIndex,
    stages: Sequence[Mapping[str, Any]],
    rows: Mapping[int, Sequence[str]],
) -> tuple[ByRow, ByPlace]:
    """Problems by row, and problems without a row by stage (`RECIPE` for the recipe itself).

    Args:
        problems: the loader's problems.
        index: the line of every key of the text.
        stages: the stages' tables.
        rows: the keys that have a row, by stage.
    """
    at_line: dict[int, list[KeyPath]] = {}
    for path, line in index.lines.items():
        at_line.setdefault(line, []).append(path)
    by_row: ByRow = {}
    loose: ByPlace = {}
    for problem in problems:
        spots = _spots(problem, at_line, index, stages, rows)
        for place, key in spots:
            by_row.setdefault((place, key), []).append(problem)
        if not spots:
            loose.setdefault(_place_of(problem, index, len(stages)), []).append(problem)
    return by_row, loose


def _spots(
    problem: Problem,
    at_line: Mapping[int, Sequence[KeyPath]],
    index: TomlIndex,
    stages: Sequence[Mapping[str, Any]],
    rows: Mapping[int, Sequence[str]],
) -> list[tuple[int, str]]:
    for path in sorted(at_line.get(problem.line, ()), key=len, reverse=True):
        found = _rows_at(path, stages, rows)
        if found:
            return found
    place = _place_of(problem, index, len(stages))
    key = _named_row(place, problem.key, rows.get(place, ()))
    return [(place, key)] if key else []


def _rows_at(
    path: KeyPath, stages: Sequence[Mapping[str, Any]], rows: Mapping[int, Sequence[str]]
) -> list[tuple[int, str]]:
    """The rows of a key path; for a key in `defaults`, the rows of all stages that use the default."""
    if len(path) >= 3 and path[0] == "stage" and isinstance(path[1], int):
        key = _longest_row(path[2:], rows.get(path[1], ()))
        return [(path[1], key)] if key else []
    if len(path) >= 3 and path[0] == "defaults":
        places = [place for place, stage in enumerate(stages) if stage.get("kind") == path[1]]
        found = [(place, _longest_row(path[2:], rows.get(place, ()))) for place in places]
        return [(place, key) for place, key in found if key and not _has(stages[place], key)]
    key = _longest_row(path, rows.get(RECIPE, ()))
    return [(RECIPE, key)] if key else []


def _longest_row(parts: Sequence[str | int], keys: Sequence[str]) -> str:
    words: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            break
        words.append(part)
    for length in range(len(words), 0, -1):
        dotted = ".".join(words[:length])
        if dotted in keys:
            return dotted
    return ""


def _named_row(place: int, key: str, keys: Sequence[str]) -> str:
    """The row that a problem's dotted key ends with: `atlas.retry.max_attempts` names `retry.max_attempts`.

    In a stage, the first part is the stage's name. It may be any word, so it is not compared with keys.
    """
    parts = re.sub(r"\[\d+\]", "", key).split(".")
    starts = list(range(len(parts)))
    if place != RECIPE:
        starts = starts[1:]
    for start in starts:
        for end in range(len(parts), start, -1):
            dotted = ".".join(parts[start:end])
            if dotted in keys:
                return dotted
    return ""


def _place_of(problem: Problem, index: TomlIndex, stages: int) -> int:
    """The stage whose table the problem's line is in."""
    place = RECIPE
    starts = [(index.lines.get(("stage", n), 0), n) for n in range(stages)]
    for line, number in starts:
        if 0 < line <= problem.line:
            place = number
    return place


def _has(stage: Mapping[str, Any], key: str) -> bool:
    table: Any = stage
    for part in key.split("."):
        if not isinstance(table, Mapping) or part not in table:
            return False
        table = table[part]
    return True
