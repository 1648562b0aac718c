"""Kept answers and their verdicts as metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean
from typing import Any

from engines.judging.answers import Kept
from engines.judging.checks import Judges, judge
from engines.judging.json_checks import json_problem
from engines.judging.shares.counts import pass_at, wilson
from engines.judging.statistics import quantile
from engines.judging.task import Task, Verdict
from engines.judging.text_metrics import lengths, variety
from recipes.stages.evaluate import TRIES

_JSON_CHECKS = frozenset({"json", "json_schema"})


@dataclass(frozen=True)
class Judged:
    """A task, its answer and the verdicts of its checks."""

    task: Task
    kept: Kept
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Every check passed. A check without a verdict has not."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def unjudged(self) -> bool:
        """No check failed, and one gave no verdict."""
        results = [verdict.passed for verdict in self.verdicts]
        return None in results and False not in results

    def record(self) -> dict[str, Any]:
        """The row of a results file."""
        return {
            "key": self.task.key,
            "name": self.task.name,
            "where": self.task.where,
            "prompt": self.task.prompt,
            "expected": self.task.expected,
            "answer": self.kept.answer,
            "ids": self.kept.ids,
            "passed": self.passed,
            "verdicts": [{"check": one.check, "passed": one.passed, "reason": one.reason} for one in self.verdicts],
            "ended": self.kept.ended,
            "prompt_tokens": self.kept.prompt_tokens,
            "tokens": self.kept.tokens,
            "first_token_s": self.kept.first_token_s,
            "latency_s": self.kept.latency_s,
            "batch": self.kept.batch,
        }


def judged(task: Task, kept: Kept, judges: Judges) -> Judged:
    """An answer with its verdicts; a task that the model could not be asked fails every check."""
    if kept.problem:
        return Judged(task, kept, tuple(Verdict(check.kind, False, kept.problem) for check in task.checks))
    return Judged(task, kept, judge(kept.answer, task, judges))


def totals(rows: Sequence[Judged]) -> dict[str, float]:
    """The metrics of at least one judged row.

    `success` is the share of rows that passed, `success_low` and `success_high` its interval; times are of one request
    each, as they were measured. Several answers to one prompt are one row, of which a part may have passed: they are
    not independent.
    """
    prompts = _by_prompt(rows)
    passed = fsum(sum(answers) / len(answers) for answers in prompts)
    interval = wilson(passed, len(prompts))
    found: dict[str, float] = {
        "success": passed / len(prompts),
        "success_low": interval.low,
        "success_high": interval.high,
        "test_rows": len(prompts),
        **_of_samples(prompts),
        "unjudged_rows": sum(row.unjudged for row in rows),
        **_of_json(rows),
        **variety(row.kept.answer for row in rows),
    }
    return {**found, **_of_times([row.kept for row in rows if not row.kept.problem])}


def _by_prompt(rows: Sequence[Judged]) -> list[list[bool]]:
    """Which answers passed, together for those to one prompt."""
    found: list[list[bool]] = []
    first: dict[str, list[bool]] = {}
    for row in rows:
        if row.task.sample_of in first:
            first[row.task.sample_of].append(row.passed)
        else:
            found.append([row.passed])
            first[row.task.sample_of or row.task.key] = found[-1]
    return found


def tries_of(answers: int) -> tuple[int, ...]:
    """The numbers of tries for which so many answers to each prompt give an estimate; none for one answer."""
    return tuple(sorted({*(tries for tries in TRIES if tries <= answers), answers})) if answers > 1 else ()


def _of_samples(prompts: Sequence[Sequence[bool]]) -> dict[str, float]:
    """pass@k (Chen et al. 2021), where each prompt has several answers."""
    tries = tries_of(min(map(len, prompts)))
    return {
        f"pass_at_{count}": fmean(pass_at(sum(answers), len(answers), count) for answers in prompts) for count in tries
    }


def _of_json(rows: Sequence[Judged]) -> dict[str, float]:
    """The share of answers that are JSON, among rows that want JSON."""
    of_json = [row for row in rows if _JSON_CHECKS & {check.kind for check in row.task.checks}]
    valid = sum(not row.kept.problem and not json_problem(row.kept.answer) for row in of_json)
    return {"valid_json": valid / len(of_json)} if of_json else {}


def _of_times(kept: Sequence[Kept]) -> dict[str, float]:
    if not kept:
        return {}
    latencies = [one.latency_s for one in kept]
    writing_s = sum(one.latency_s - one.first_token_s for one in kept)
    written = sum(one.tokens - 1 for one in kept)
    found = {
        **lengths([one.tokens for one in kept], [one.ended for one in kept], "answer_tokens"),
        "latency_mean_s": fmean(latencies),
        "latency_p50_s": quantile(latencies, 0.5),
        "latency_p95_s": quantile(latencies, 0.95),
        "latency_max_s": max(latencies),
        "first_token_p50_s": quantile([one.first_token_s for one in kept], 0.5),
    }
    return {**found, "answer_tokens_per_second": written / writing_s} if written > 0 and writing_s > 0 else found
