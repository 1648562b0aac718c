"""The results file of an evaluation: how the model was asked, every answer with its verdicts, metrics, comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.evaluate.asking import Answerer, Progress, Waiting, ask
from engines.evaluate.differences import explained
from engines.files import file_sha256, write_text
from engines.judging.checks import Judges, judge_ahead
from engines.judging.compare import RESULTS_FORMAT, Baseline, Comparison, Row, baseline_facts, compare
from engines.judging.task import Task
from engines.judging.totals import Judged, judged, totals
from engines.world import ALONE, World


@dataclass(frozen=True)
class Evaluation:
    """One model's judged answers.

    Attributes:
        rows: one for each task, in the order of the test file.
        metrics: by name.
        protocol: how the model was asked.
        comparison: with a baseline; None without one.
        differences: where answers first differ from the baseline's; None where it was not requested.
    """

    rows: list[Judged]
    metrics: dict[str, float]
    protocol: Mapping[str, Any]
    comparison: Comparison | None = None
    differences: list[dict[str, Any]] | None = None

    def compared(self) -> list[Row]:
        """The rows as a comparison needs them."""
        return [
            Row(
                row.task.key,
                row.task.expected,
                row.passed,
                row.task.name or row.task.where,
                row.kept.answer,
                tuple(row.kept.ids),
                None if row.kept.problem else row.kept.latency_s,
            )
            for row in self.rows
        ]


def evaluate_tasks(
    answerer: Answerer,
    tasks: Sequence[Task],
    judges: Judges,
    answers: Path,
    *,
    baseline: Baseline | None = None,
    explain: bool = False,
    progress: Progress = lambda _done, _all: None,
    judging: Progress = lambda _done, _all: None,
    waiting: Waiting = lambda: None,
    world: World = ALONE,
) -> Evaluation:
    """Ask, judge and count; the answers are kept in the file `answers`. `judging` takes the progress of what judges
    several answers at once. Several processes divide the answers; the first one judges them, and the others get an
    empty evaluation.

    Raises:
        OperatorError: the file has answers of another model, or the baseline has other tasks.
    """
    kept = ask(answerer, tasks, answers, progress, waiting, world)
    measured = _largest(world.gather_objects(answerer.measured()))
    if not world.is_first:
        return Evaluation([], {}, {})
    asked = [(one.answer, task) for task, one in zip(tasks, kept, strict=True) if not one.problem]
    judge_ahead(asked, judges, judging, waiting)
    rows = []
    for task, one in zip(tasks, kept, strict=True):
        waiting()
        rows.append(judged(task, one, judges))
    metrics = {**totals(rows), **measured}
    protocol = {**answerer.identity, **judges.protocol()}
    found = Evaluation(rows, metrics, protocol)
    if baseline is None:
        return found
    comparison = compare(found.compared(), baseline.rows)
    differences = explained(answerer, rows, baseline.rows, progress, waiting) if explain else None
    return Evaluation(rows, {**metrics, **comparison.metrics()}, protocol, comparison, differences)


def _largest(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """What the processes used, the largest number of each."""
    largest: dict[str, float] = {}
    for one in found:
        largest |= {name: max(value, largest.get(name, value)) for name, value in one.items()}
    return largest


def named(value: float) -> float | str:
    """A finite number, or the journal's string for a non-finite one."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def write_results(
    file: Path, evaluation: Evaluation, *, model: str, tests: Path | None, baseline: Path | None = None
) -> dict[str, Any]:
    """Write the results file, whole; returns what stands in it.

    Args:
        file: to write.
        evaluation: what it contains.
        model: its name.
        tests: the test file; None where only loss was measured.
        baseline: the results file that the evaluation was compared with.

    Raises:
        OSError: it cannot be written.
    """
    results = {
        "format": RESULTS_FORMAT,
        "model": model,
        "tests": None
        if tests is None
        else {"path": str(tests), "sha256": file_sha256(tests), "rows": len(evaluation.rows)},
        "protocol": dict(evaluation.protocol),
        "machines": sorted({row.kept.machine for row in evaluation.rows if row.kept.machine}),
        "baseline": None if baseline is None else baseline_facts(baseline),
        "metrics": {name: named(value) for name, value in evaluation.metrics.items()},
        "comparison": None if evaluation.comparison is None else evaluation.comparison.record(),
        "differences": evaluation.differences,
        "rows": [row.record() for row in evaluation.rows],
    }
    try:
        write_text(file, json.dumps(results, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        kept = "the answers are kept, and the same command writes the results"
        raise OSError(error.errno, f"{error.strerror}: {kept}", str(file)) from error
    return results
