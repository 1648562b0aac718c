"""The interval of a share, and the test of two counts, at 95 % confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An interval, both ends included."""

    low: float
    high: float


def wilson(passed: float, rows: int, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a share by Wilson's score method without correction for continuity.

    Wilson (1927), Journal of the American Statistical Association 22, pages 209-212; method 3 of Newcombe (1998),
    Statistics in Medicine 17, pages 857-872.

    Args:
        passed: rows that passed; a row of which a part passed counts as that part, which makes the interval wider than
            it need be.
        rows: all rows, at least one.
        confidence: of the interval, between 0 and 1.
    """
    if not 0 <= passed <= rows or rows < 1:
        raise ValueError(f"{passed} of {rows} is not a share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = passed / rows, z * z / rows
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    low = 0.0 if passed == 0 else (middle - half) / (1 + spread)
    high = 1.0 if passed == rows else (middle + half) / (1 + spread)
    return Interval(low, high)


def pass_at(passed: int, answers: int, tries: int) -> float:
    """How likely at least one of `tries` answers to a prompt passes, estimated without bias from more answers:
    1 - C(answers - passed, tries) / C(answers, tries). Chen et al. (2021), arXiv:2107.03374, section 2.1.

    Args:
        passed: answers that passed.
        answers: all answers to the prompt.
        tries: at most `answers`.
    """
    if not 0 <= passed <= answers or not 1 <= tries <= answers:
        raise ValueError(f"{tries} tries of {answers} answers, of which {passed} passed")
    return 1 - math.comb(answers - passed, tries) / math.comb(answers, tries)


def mcnemar(won: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test: how likely such a difference is between equal models.

    It is the binomial test of the rows on which the two models differ. McNemar (1947), Psychometrika 12,
    pages 153-157.

    Args:
        won: rows that only the first model passes.
        lost: rows that only the second model passes.
    """
    if won < 0 or lost < 0:
        raise ValueError(f"{won} and {lost} are not counts")
    rows = won + lost
    if won == lost:
        return 1.0
    # The largest term of the tail is the last one; the others are small against it, so the sum is stable.
    last = min(won, lost)
    half = rows * math.log(2)
    total = math.fsum(math.exp(_log_choose(rows, found) - half) for found in range(last + 1))
    return min(1.0, 2 * total)


def _log_choose(rows: int, found: int) -> float:
    return math.lgamma(rows + 1) - math.lgamma(found + 1) - math.lgamma(rows - found + 1)


def paired_shares(won: int, lost: int, rows: int, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the difference of two shares of the same rows, by Tango's score method.

    Where no row changed it is not empty: so many rows without a change only bound how often one changes. Tango (1998),
    Statistics in Medicine 17, pages 891-908.

    Args:
        won: rows that only the first model passes.
        lost: rows that only the second model passes.
        rows: all rows, at least one.
        confidence: of the interval, between 0 and 1.
    """
    if min(won, lost) < 0 or won + lost > rows or rows < 1:
        raise ValueError(f"{won} won and {lost} lost rows of {rows} are not a comparison")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    found = (won - lost) / rows
    # The score falls as the assumed difference grows, so each end is where it crosses z or -z.
    low = _crossing(won, lost, rows, z, -1.0, found)
    return Interval(low, _crossing(won, lost, rows, -z, found, 1.0))


def _crossing(won: int, lost: int, rows: int, score: float, low: float, high: float) -> float:
    """The difference between `low` and `high` at which the score is `score`, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if _tango(won, lost, rows, middle) > score:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tango(won: int, lost: int, rows: int, difference: float) -> float:
    """Tango's score of an assumed difference; the share of lost rows is its maximum likelihood estimate under it."""
    b = (2 * rows - won + lost) * difference - won - lost
    c = -lost * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 8 * rows * c)) - b) / (4 * rows)
    variance = rows * (2 * share + difference * (1 - difference))
    above = won - lost - rows * difference
    return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above) if above else 0.0
