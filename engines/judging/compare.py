"""Two evaluations of the same tasks, by pairs: which rows changed, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.json_text import read_json
from engines.judging.statistics import mcnemar, paired_bootstrap
from recipes.problems import OperatorError, printable

MAX_RESULTS_BYTES = 1024**3


@dataclass(frozen=True)
class Comparison:
    """A model and its baseline on the rows that both answered.

    Attributes:
        rows: tasks of both.
        only_model: tasks that the baseline was not asked.
        only_baseline: tasks that this model was not asked.
        success: share of the common rows that the model passes.
        baseline_success: share that the baseline passes.
        won: keys of rows that only the model passes.
        lost: keys of rows that only the baseline passes.
        p_value: McNemar's exact test.
        difference: success - baseline_success.
        difference_low: lower end of its bootstrap interval.
        difference_high: upper end.
    """

    rows: int
    only_model: int
    only_baseline: int
    success: float
    baseline_success: float
    won: list[str]
    lost: list[str]
    p_value: float
    difference: float
    difference_low: float
    difference_high: float

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def read_baseline(file: Path) -> dict[str, bool]:
    """Which tasks a results file passed, by their keys.

    Raises:
        OperatorError: it cannot be read, or is not a results file.
    """
    name = printable(str(file), 400)
    hint = "give the file that cockpit evaluate --output wrote"
    try:
        value = read_json(file, MAX_RESULTS_BYTES)
        rows = {row["key"]: row["passed"] for row in value["rows"]}
    except (OSError, ValueError) as error:
        raise OperatorError(f"{name} cannot be read: {printable(str(error), 200)}", hint) from error
    except (KeyError, TypeError) as error:
        raise OperatorError(f"{name} is not a file of results", hint) from error
    if not rows or not all(isinstance(key, str) and isinstance(passed, bool) for key, passed in rows.items()):
        raise OperatorError(f"{name} has no rows that passed or failed", hint)
    return rows


def compare(model: Mapping[str, bool], baseline: Mapping[str, bool]) -> Comparison:
    """Compare by pairs.

    Raises:
        OperatorError: no task is in both.
    """
    common = [key for key in model if key in baseline]
    if not common:
        raise OperatorError(
            f"the baseline has other tasks: none of its {len(baseline)} is among these {len(model)}",
            "evaluate the baseline on the same test file",
        )
    ours, theirs = [float(model[key]) for key in common], [float(baseline[key]) for key in common]
    won = [key for key in common if model[key] and not baseline[key]]
    lost = [key for key in common if baseline[key] and not model[key]]
    interval = paired_bootstrap(ours, theirs)
    return Comparison(
        rows=len(common),
        only_model=len(model) - len(common),
        only_baseline=len(baseline) - len(common),
        success=sum(ours) / len(common),
        baseline_success=sum(theirs) / len(common),
        won=won,
        lost=lost,
        p_value=mcnemar(len(won), len(lost)),
        difference=(sum(ours) - sum(theirs)) / len(common),
        difference_low=interval.low,
        difference_high=interval.high,
    )
