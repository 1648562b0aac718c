"""The metrics that the gates of a stage may name: those that the stage will report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from recipes.problems import closest, either
from recipes.stages.fields import StageFields
from recipes.stages.registry import STAGE_TYPES, row_of

_LISTED = 16


def unreported(tag: str, table: Mapping[str, Any]) -> list[tuple[int, str, str, str]]:
    """The gates on metrics that the stage will not report: the gate's number, its metric, allowed, and a hint.

    Args:
        tag: the stage's type, a key of `STAGE_TYPES`.
        table: the stage with its defaults. A table that is not valid has other problems, which come first.
    """
    gates = table.get("gate")
    if not isinstance(gates, list) or not gates:
        return []
    try:
        stage = STAGE_TYPES[tag].model_validate(dict(table))
    except ValidationError:
        return []
    known = row_of(stage).metrics(stage)
    return [
        (number, gate.metric, either(known, _LISTED), _hint(stage, gate.metric, known))
        for number, gate in enumerate(stage.gate)
        if not _is_among(gate.metric, known)
    ]


def _is_among(metric: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(metric, name) for name in names)


def _hint(stage: StageFields, metric: str, known: Sequence[str]) -> str:
    """The field that would make the stage report the metric, else the nearest name."""
    row = row_of(stage)
    for field, value, words in row.metrics_if:
        if _is_among(metric, row.metrics(stage.model_copy(update={field: value}))):
            return f"set {words}"
    return closest(metric, known)
