"""The results file of an evaluation: how the model was asked, every answer with its verdicts, metrics, comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.evaluate.asking import Answerer, Progress, Waiting, ask
from engines.files import file_sha256, write_text
from engines.judging.checks import Judges
from engines.judging.compare import Comparison, compare
from engines.judging.task import Task
from engines.judging.totals import Judged, judged, totals

FORMAT = 1


@dataclass(frozen=True)
class Evaluation:
    """One model's judged answers.

    Attributes:
        rows: one for each task, in the order of the test file.
        metrics: by name.
        protocol: how the model was asked.
        comparison: with a baseline; None without one.
    """

    rows: list[Judged]
    metrics: dict[str, float]
    protocol: Mapping[str, Any]
    comparison: Comparison | None = None

    def passed(self) -> dict[str, bool]:
        """Which tasks passed, by their keys."""
        return {row.task.key: row.passed for row in self.rows}


def evaluate_tasks(
    answerer: Answerer,
    tasks: Sequence[Task],
    judges: Judges,
    answers: Path,
    *,
    baseline: Mapping[str, bool] | None = None,
    progress: Progress = lambda _done, _all: None,
    waiting: Waiting = lambda: None,
) -> Evaluation:
    """Ask, judge and count; the answers are kept in the file `answers`.

    Raises:
        OperatorError: the file has answers of another model, or the baseline has other tasks.
    """
    kept = ask(answerer, tasks, answers, progress, waiting)
    rows = []
    for task, one in zip(tasks, kept, strict=True):
        waiting()
        rows.append(judged(task, one, judges))
    metrics = {**totals(rows), **answerer.measured()}
    found = Evaluation(rows, metrics, answerer.identity)
    if baseline is None:
        return found
    comparison = compare(found.passed(), baseline)
    more = {
        "baseline_success": comparison.baseline_success,
        "difference": comparison.difference,
        "difference_low": comparison.difference_low,
        "difference_high": comparison.difference_high,
        "p_value": comparison.p_value,
        "won_rows": float(len(comparison.won)),
        "lost_rows": float(len(comparison.lost)),
        "forgetting": -comparison.difference,
        "forgetting_low": -comparison.difference_high,
        "forgetting_high": -comparison.difference_low,
    }
    return Evaluation(rows, {**metrics, **more}, answerer.identity, comparison)


def write_results(file: Path, evaluation: Evaluation, *, model: str, tests: Path) -> dict[str, Any]:
    """Write the results file, whole; returns what stands in it.

    Raises:
        OSError: it cannot be written.
    """
    results = {
        "format": FORMAT,
        "model": model,
        "tests": {"path": str(tests), "sha256": file_sha256(tests), "rows": len(evaluation.rows)},
        "protocol": dict(evaluation.protocol),
        "metrics": evaluation.metrics,
        "comparison": None if evaluation.comparison is None else evaluation.comparison.record(),
        "rows": [row.record() for row in evaluation.rows],
    }
    write_text(file, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results
