"""One check of a shipment: what was measured, what is allowed, where the figure comes from, and the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from engines.words import GateResult
from recipes import quantities
from recipes.problems import printable

_SHOWN = 4
WORDS: Mapping[str, Callable[[float], str]] = {
    "seconds": quantities.duration,
    "bytes": quantities.size_in_both,
    "number": quantities.number,
    "rows": quantities.whole,
}
"""How a figure of each unit is written."""


class Result(StrEnum):
    """The result of a check. Only `pass` and `does not apply` let a file ship."""

    PASS = GateResult.PASS.value
    FAIL = GateResult.FAIL.value
    NOT_MEASURED = "not measured"
    NOT_ENOUGH = "not enough evidence"
    NOT_APPLICABLE = "does not apply"


@dataclass(frozen=True)
class Check:
    """A finished check.

    Attributes:
        name: of the check, with a dot between its parts.
        result: its result.
        measured: the figure or the fact, as text.
        limit: what is allowed, as text.
        source: where the figure comes from.
        reason: why the file does not ship; empty for a check that passed.
        value: the figure; None for a fact, or if it is not finite.
    """

    name: str
    result: Result
    measured: str = ""
    limit: str = ""
    source: str = ""
    reason: str = ""
    value: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the file may ship by this check."""
        return self.result in (Result.PASS, Result.NOT_APPLICABLE)

    def record(self) -> dict[str, Any]:
        """The check as JSON values."""
        return {**asdict(self), "result": str(self.result)}


def fact(name: str, problems: Iterable[str], *, measured: str = "", source: str = "", limit: str = "") -> Check:
    """A check of facts: it passes without problems."""
    found = list(problems)
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    reason = "; ".join(printable(problem, 400) for problem in found[:_SHOWN]) + more
    return Check(name, Result.FAIL if found else Result.PASS, printable(measured, 200), limit, source, reason)


def missing(name: str, reason: str, *, limit: str = "", source: str = "") -> Check:
    """A check of something that was not measured."""
    return Check(name, Result.NOT_MEASURED, quantities.NOT_MEASURED, limit, source, printable(reason, 400))


def unneeded(name: str, why: str) -> Check:
    """A check that does not apply."""
    return Check(name, Result.NOT_APPLICABLE, printable(why, 300))


def figure(
    name: str, metrics: Mapping[str, float], metric: str, op: str, limit: float, *, source: str, unit: str = "number"
) -> Check:
    """A figure compared with its limit; one that is missing or is not a number never passes.

    Args:
        name: of the check.
        metrics: measured figures.
        metric: the name of this one.
        op: <=, >= or >.
        limit: the limit.
        source: of the figure.
        unit: a key of `WORDS`.
    """
    words = WORDS[unit]
    allowed = f"{op} {words(limit)}"
    value = metrics.get(metric)
    if value is None:
        return missing(name, f"{metric} was not measured", limit=allowed, source=source)
    if not math.isfinite(value):
        return Check(name, Result.FAIL, "nan", allowed, source, f"{metric} is not a number")
    met = {"<=": value <= limit, ">=": value >= limit, ">": value > limit}[op]
    shown = words(value)
    reason = "" if met else f"{metric} is {shown}; allowed {allowed}"
    return Check(name, Result.PASS if met else Result.FAIL, shown, allowed, source, reason, value)
