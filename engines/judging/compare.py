"""Two evaluations of the same tasks, by pairs: which rows changed, and whether chance explains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.files import file_sha256, read_regular_text
from engines.json_text import parse_json
from engines.judging.answers import MAX_SECONDS, MAX_TOKEN
from engines.judging.shares.counts import mcnemar, paired_shares
from engines.judging.statistics import paired_bootstrap
from recipes.problems import OperatorError, printable

MAX_RESULTS_BYTES = 1024**3
RESULTS_FORMAT = 1
NAMED_ROWS = 8
"""Rows without a partner that a comparison names."""


@dataclass(frozen=True)
class Row:
    """One judged row, as a results file has it.

    Attributes:
        key: of its task.
        expected: the expected answer.
        passed: every check passed.
        where: its name, or file and line.
        answer: the answer; None where the file does not have it.
        ids: tokens of the answer; empty where the file does not have them.
        latency_s: seconds of the answer; None where the file does not have them.
    """

    key: str
    expected: str
    passed: bool
    where: str = ""
    answer: str | None = None
    ids: tuple[int, ...] = ()
    latency_s: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A model and its baseline on the rows that both answered.

    Attributes:
        rows: tasks of both.
        only_model: tasks that the baseline was not asked.
        only_baseline: tasks that this model was not asked.
        unpaired: places of the first of both.
        other_expected: tasks whose prompts both have, with another expected answer.
        success: share of the common rows that the model passes.
        baseline_success: share that the baseline passes.
        won: keys of rows that only the model passes.
        lost: keys of rows that only the baseline passes.
        p_value: McNemar's exact test.
        difference: success - baseline_success.
        difference_low: lower end of its interval.
        difference_high: upper end.
        same_answers: share of common rows with the same answer; None where the baseline does not have its answers.
        latency_difference_s: mean seconds of an answer above the baseline's; None where a row has no time.
        latency_difference_low_s: lower end of its bootstrap interval.
        latency_difference_high_s: upper end.
    """

    rows: int
    only_model: int
    only_baseline: int
    unpaired: list[str]
    other_expected: int
    success: float
    baseline_success: float
    won: list[str]
    lost: list[str]
    p_value: float
    difference: float
    difference_low: float
    difference_high: float
    same_answers: float | None
    latency_difference_s: float | None
    latency_difference_low_s: float | None
    latency_difference_high_s: float | None

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def metrics(self) -> dict[str, float]:
        """For gates."""
        names = ("same_answers", "latency_difference_s", "latency_difference_low_s", "latency_difference_high_s")
        known = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {
            "baseline_success": self.baseline_success,
            "difference": self.difference,
            "difference_low": self.difference_low,
            "difference_high": self.difference_high,
            "p_value": self.p_value,
            "won_rows": float(len(self.won)),
            "lost_rows": float(len(self.lost)),
            "forgetting": -self.difference,
            "forgetting_low": -self.difference_high,
            "forgetting_high": -self.difference_low,
            "unpaired_rows": float(self.only_model + self.only_baseline),
            **known,
        }


@dataclass(frozen=True)
class Baseline:
    """The rows of a results file, and the local time that its chat template saw, in ISO form; empty if not recorded."""

    rows: list[Row]
    moment: str = ""


def read_results(file: Path) -> Any:
    """The value of a results file; a byte order mark, which editors add, is no part of it.

    Raises:
        OSError, ValueError: it cannot be read, or is not JSON.
    """
    return parse_json(read_regular_text(file, MAX_RESULTS_BYTES).removeprefix("\ufeff"))


def read_baseline(file: Path) -> Baseline:
    """The rows of a results file.

    Raises:
        OperatorError: it cannot be read, or is not a results file.
    """
    name = printable(str(file), 400)
    hint = "give the file that cockpit evaluate --output wrote"
    try:
        value = read_results(file)
        if value.get("format", RESULTS_FORMAT) != RESULTS_FORMAT:
            raise ValueError(f"format — got {printable(repr(value['format']), 50)}; allowed: {RESULTS_FORMAT}")
        rows = [_row(row) for row in value["rows"]]
        moment = value.get("protocol", {}).get("moment", "")
    except (OSError, ValueError) as error:
        raise OperatorError(f"{name} cannot be read: {printable(str(error), 200)}", hint) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{name} is not a file of results", hint) from error
    if not rows:
        raise OperatorError(f"{name} has no rows that passed or failed", hint)
    return Baseline(rows, moment if isinstance(moment, str) else "")


def baseline_facts(file: Path) -> dict[str, str]:
    """Which results a file has: `path`, `sha256`, `name` and identity (`model`) of the model, its template, and the
    SHA-256 of its `tests`.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    value = read_results(file)
    protocol, tests = value.get("protocol"), value.get("tests")
    protocol, tests = (one if isinstance(one, dict) else {} for one in (protocol, tests))
    return {
        "path": str(file),
        "sha256": file_sha256(file),
        "name": str(value.get("model", "")),
        "model": str(protocol.get("model", "")),
        "template": str(protocol.get("template", "")),
        "tests": str(tests.get("sha256", "")),
    }


def _row(given: dict[str, Any]) -> Row:
    """One row of a results file; TypeError, KeyError or ValueError for anything else."""
    key, passed, expected = given["key"], given["passed"], given.get("expected", "")
    where, answer = given.get("name") or given.get("where", ""), given.get("answer")
    ids = given.get("ids") or []
    texts = (key, expected, where)
    if not (isinstance(passed, bool) and all(isinstance(text, str) for text in texts)):
        raise TypeError
    if not (answer is None or isinstance(answer, str)):
        raise TypeError
    if not all(type(one) is int and 0 <= one <= MAX_TOKEN for one in ids):
        raise TypeError
    latency = given.get("latency_s")
    seconds = None
    if isinstance(latency, int | float) and not isinstance(latency, bool):
        if not 0 <= latency <= MAX_SECONDS:
            row = printable(where or key, 100)
            raise ValueError(f"row {row}: latency_s — got {printable(repr(latency), 50)}; allowed: 0 to {MAX_SECONDS}")
        seconds = float(latency)
    return Row(key, expected, passed, where, answer, tuple(ids), seconds)


def paired(rows: Sequence[Row], baseline: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows that are in both, each with its partner: equal prompt, equal expected answer, and the same place among
    such rows. So the order of the rows does not matter."""
    theirs = _by_identity(baseline)
    return [(row, theirs[one]) for one, row in _by_identity(rows).items() if one in theirs]


def _by_identity(rows: Sequence[Row]) -> dict[tuple[str, str, int], Row]:
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for row in rows:
        identity = (_prompt(row), row.expected)
        seen[identity] += 1
        found[(*identity, seen[identity])] = row
    return found


def _prompt(row: Row) -> str:
    """The hash of its prompt, without the number that the keys of equal prompts end with."""
    return row.key.partition(".")[0]


def compare(model: Sequence[Row], baseline: Sequence[Row]) -> Comparison:
    """Compare by pairs.

    Raises:
        OperatorError: no task is in both.
    """
    pairs = paired(model, baseline)
    matched = ({id(row) for row, _ in pairs}, {id(row) for _, row in pairs})
    alone = [
        [row for row in rows if id(row) not in known] for rows, known in zip((model, baseline), matched, strict=True)
    ]
    prompts = [{_prompt(row) for row in rows} for rows in alone]
    other_expected = len(prompts[0] & prompts[1])
    if not pairs:
        why = f"; {other_expected} have the same prompt and another expected answer" if other_expected else ""
        raise OperatorError(
            f"the baseline has other tasks: none of its {len(baseline)} is among these {len(model)}{why}",
            "evaluate the baseline on the same test file",
        )
    won = [row.key for row, theirs in pairs if row.passed and not theirs.passed]
    lost = [row.key for row, theirs in pairs if theirs.passed and not row.passed]
    interval = paired_shares(len(won), len(lost), len(pairs))
    times = [(row.latency_s, theirs.latency_s) for row, theirs in pairs]
    latency = _latency([(own, other) for own, other in times if own is not None and other is not None], len(pairs))
    known = all(row.answer is not None and theirs.answer is not None for row, theirs in pairs)
    return Comparison(
        rows=len(pairs),
        only_model=len(alone[0]),
        only_baseline=len(alone[1]),
        unpaired=[row.where for rows in alone for row in rows[:NAMED_ROWS]],
        other_expected=other_expected,
        success=sum(row.passed for row, _ in pairs) / len(pairs),
        baseline_success=sum(theirs.passed for _, theirs in pairs) / len(pairs),
        won=won,
        lost=lost,
        p_value=mcnemar(len(won), len(lost)),
        difference=(len(won) - len(lost)) / len(pairs),
        difference_low=interval.low,
        difference_high=interval.high,
        same_answers=sum(row.answer == theirs.answer for row, theirs in pairs) / len(pairs) if known else None,
        latency_difference_s=latency[0],
        latency_difference_low_s=latency[1],
        latency_difference_high_s=latency[2],
    )


def _latency(pairs: Sequence[tuple[float, float]], rows: int) -> tuple[float | None, float | None, float | None]:
    """The mean difference of two times and the ends of its interval; None where not every row has both."""
    if len(pairs) < rows:
        return None, None, None
    own, other = [one for one, _ in pairs], [one for _, one in pairs]
    interval = paired_bootstrap(own, other)
    return (sum(own) - sum(other)) / rows, interval.low, interval.high
