"""Gates on the success of test rows: what so few rows can prove, before anything runs.

The lower end of Wilson's interval is highest where every row passes: n / (n + z²). A gate above it refuses any model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.files import open_regular
from engines.judging.shares.counts import wilson
from engines.look.answer import StageLook
from recipes import quantities
from recipes.graph import Reference
from recipes.load import LoadedRecipe
from recipes.problems import Problem
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import Gate
from recipes.stages.registry import tag_of_stage

_Z2 = 1.959963984540054**2
"""The square of the normal quantile of 95 % confidence."""
_LOW, _SHARE = "success_low", "success"
_ABOVE = (">", ">=")
_MOST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class _Judged:
    """A gate on test rows: its stage, number and metric without the file type, and the number of rows."""

    stage: EvaluateStage
    place: int
    number: int
    gate: Gate
    metric: str
    rows: int


def gate_problems(loaded: LoadedRecipe, looks: Mapping[str, StageLook] | None = None) -> list[Problem]:
    """Gates that no model can pass, because the rows are too few.

    Args:
        loaded: the recipe.
        looks: what a look at the data of its stages found: then only gates on rows that a prepare stage of the recipe
            will write; else only those on rows that exist.
    """
    found = []
    for one in _judged(loaded, looks):
        most = _highest_low(one.rows)
        if one.metric == _LOW and (one.gate.value > most or (one.gate.value == most and one.gate.op == ">")):
            needed = f"give at least {_needed(one.gate.value)} rows, or a gate that they can reach"
            hint = needed if one.gate.value < 1 else "give a value below 1"
            what = f"{one.rows} of {one.rows} test rows mean at least {_percent(most)} at 95 %"
            key = ("stage", one.place, "gate", one.number, "value")
            tag = tag_of_stage(one.stage)
            found.append(loaded.source.problem(key, what, str(one.gate.value), f"at most {_percent(most)}", hint, tag))
    return found


def gate_notes(loaded: LoadedRecipe, looks: Mapping[str, StageLook]) -> list[str]:
    """What a gate on the share of passed rows means with its number of rows, one sentence for each."""
    notes = []
    for one in (*_judged(loaded), *_judged(loaded, looks)):
        if one.metric == _SHARE and 0 < one.gate.value <= 1:
            least = min(one.rows, _least(one.gate.value, one.rows, strict=one.gate.op == ">"))
            notes.append(
                f"{one.stage.name}: {one.gate.metric} {one.gate.op} {quantities.number(one.gate.value)} needs {least}"
                f" of {one.rows} rows, which proves at least {_percent(wilson(least, one.rows).low)} at 95 %;"
                f" {_LOW}{one.gate.metric.removeprefix(_SHARE)} is that number"
            )
    return notes


def _judged(loaded: LoadedRecipe, looks: Mapping[str, StageLook] | None = None) -> Iterator[_Judged]:
    for place, stage in enumerate(loaded.recipe.stage):
        if not isinstance(stage, EvaluateStage) or stage.test_data is None:
            continue
        reference = loaded.graph.inputs[stage.name].get("test_data")
        if looks is None:
            rows = _rows(reference.path, stage.split) if reference is not None and reference.path is not None else 0
        else:
            rows = _rows_to_be_written(reference, stage.split, looks)
        for number, gate in enumerate(stage.gate if rows else ()):
            if gate.op in _ABOVE:
                yield _Judged(stage, place, number, gate, gate.metric.partition(".")[0], rows)


def _rows_to_be_written(reference: Reference | None, split: str, looks: Mapping[str, StageLook]) -> int:
    """Test rows that a prepare stage of the recipe will write; 0 if the number is not known before it runs."""
    if reference is None or reference.origin != "stage" or reference.name not in looks:
        return 0
    return looks[reference.name].divided.get(split, 0)


def _rows(place: Path, split: str) -> int:
    """Test rows of a file of JSON Lines, or of a folder's split; 0 if the number is not known before it is read."""
    file = place / f"{split}.jsonl" if place.is_dir() else place
    if file.suffix not in (".jsonl", ".ndjson"):
        return 0
    try:
        with open_regular(file, _MOST_BYTES) as lines:
            return sum(1 for line in lines if line.strip())
    except (OSError, ValueError):
        return 0


def _highest_low(rows: int) -> float:
    return wilson(rows, rows).low


def _needed(low: float) -> int:
    """The fewest rows of which all passed prove a share."""
    return math.ceil(low * _Z2 / (1 - low)) if low < 1 else 0


def _least(share: float, rows: int, *, strict: bool) -> int:
    """The fewest passed rows whose share meets a gate."""
    exact = share * rows
    least = math.ceil(exact - 1e-9)
    return least + 1 if strict and abs(least - exact) < 1e-9 else least


def _percent(share: float) -> str:
    return quantities.percent(share, 1)
