"""The statistics of an evaluation have the values of statistics libraries and of the papers that define them.

Values marked scipy were computed with scipy 1.17.1 (`binomtest`, `proportion_ci(method="wilson")`, `bootstrap`) and
agree with statsmodels 0.15.0 to the last digits.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.judging.shares.counts import mcnemar, paired_shares, pass_at, wilson
from engines.judging.statistics import paired_bootstrap, quantile

NEWCOMBE = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
"""Newcombe (1998), Statistics in Medicine 17, page 861, table I, method 3."""
SCIPY_WILSON = {
    (81, 263): (0.2552885198782742, 0.36620957698280004),
    (0, 20): (0.0, 0.16112515805281935),
    (31, 31): (0.889744604539564, 1.0),
    (490, 500): (0.9635798167531207, 0.9891008164037891),
    (1, 1): (0.20654931437723745, 1.0),
}
SCIPY_BINOMIAL = {
    (121, 59): 4.4344492637551645e-06,
    (70, 59): 0.3786876626931185,
    (80, 59): 0.08945231499446925,
    (30, 60): 0.0020602656809630745,
    (10, 30): 0.0022214337732293643,
    (10, 10): 1.0,
    (1, 0): 1.0,
    (0, 0): 1.0,
    (5000, 5200): 0.04878796312682234,
}


@pytest.mark.parametrize(("counts", "published"), NEWCOMBE.items())
def test_wilsons_interval_has_the_published_values(counts: tuple[int, int], published: tuple[float, float]) -> None:
    found = wilson(*counts)
    assert (round(found.low, 4), round(found.high, 4)) == published


@pytest.mark.parametrize(("counts", "of_library"), SCIPY_WILSON.items())
def test_wilsons_interval_has_the_librarys_values(counts: tuple[int, int], of_library: tuple[float, float]) -> None:
    found = wilson(*counts)
    assert (found.low, found.high) == pytest.approx(of_library, abs=1e-12)


@pytest.mark.parametrize(("counts", "of_library"), SCIPY_BINOMIAL.items())
def test_mcnemars_exact_test_has_the_librarys_values(counts: tuple[int, int], of_library: float) -> None:
    assert mcnemar(*counts) == pytest.approx(of_library, rel=1e-9)
    assert mcnemar(*reversed(counts)) == mcnemar(*counts)


def test_the_bootstrap_has_the_librarys_interval() -> None:
    """scipy: `bootstrap((differences,), mean, method="percentile", n_resamples=100000)` with three seeds gives lows
    from 0.285 to 0.292 and highs from 2.050 to 2.056 for the second pair; for the first exactly -0.05 and 0.15."""
    first, second = [1] * 70 + [0] * 30, [1] * 55 + [0] * 20 + [1] * 10 + [0] * 15
    assert paired_bootstrap(first, second).low == pytest.approx(-0.05, abs=0.011)
    assert paired_bootstrap(first, second).high == pytest.approx(0.15, abs=0.011)
    one, other = [at * 37 % 101 / 10 for at in range(60)], [at * 53 % 97 / 12 for at in range(60)]
    found = paired_bootstrap(one, other)
    assert (found.low, found.high) == pytest.approx((0.29, 2.05), abs=0.04)


def test_the_bootstrap_resamples_rows_and_gives_the_same_interval_each_time() -> None:
    first, second = [1.0, 0, 1, 1, 0, 1, 1, 1], [0.0, 0, 1, 0, 1, 1, 0, 1]
    found = paired_bootstrap(first, second)
    assert paired_bootstrap(first, second) == found
    assert paired_bootstrap(first, second, seed=1, resamples=500) != paired_bootstrap(first, second, resamples=500)
    differences = np.asarray(first) - np.asarray(second)
    rows = np.random.default_rng(3).integers(0, 8, (100_000, 8))
    by_hand = np.quantile(differences[rows].mean(axis=1), [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(by_hand), abs=0.126)  # one step of a mean of eight


@given(rows=st.integers(1, 5000), data=st.data())
def test_an_interval_has_the_share_in_it_and_grows_as_rows_get_fewer(rows: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, rows))
    found, of_more = wilson(passed, rows), wilson(10 * passed, 10 * rows)
    assert 0 <= found.low <= passed / rows <= found.high <= 1
    assert of_more.high - of_more.low < found.high - found.low
    other = wilson(rows - passed, rows)
    assert (other.low, other.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-9)


@given(won=st.integers(0, 400), lost=st.integers(0, 400))
def test_a_p_value_is_a_probability_and_falls_with_each_further_win(won: int, lost: int) -> None:
    assert 0 < mcnemar(won, lost) <= 1
    if won > lost:
        assert mcnemar(won + 1, lost) < mcnemar(won, lost) or mcnemar(won, lost) == 1


@pytest.mark.parametrize("counts", [(1, 0), (-1, 3), (4, 3)])
def test_counts_that_are_no_share_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a share"):
        wilson(*counts)


def test_a_quantile_is_interpolated() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([7], 0.95) == 7


@pytest.mark.parametrize(
    ("won", "lost", "rows"), [(0, 0, 60), (3, 0, 60), (5, 2, 40), (1, 1, 2), (9, 12, 44), (7, 0, 7)]
)
def test_the_interval_of_paired_shares_is_tangos(won: int, lost: int, rows: int) -> None:
    """At both ends the score is 1.96, with the nuisance share found by maximizing the likelihood on a grid."""
    found = paired_shares(won, lost, rows)
    for end, sign in ((found.low, 1), (found.high, -1)):
        if abs(end) > 1 - 1e-9:
            continue
        grid = np.linspace(max(0.0, -end), (1 - end) / 2, 400_001)[1:-1]
        chance = won * np.log(grid + end) + lost * np.log(grid) + (rows - won - lost) * np.log1p(-2 * grid - end)
        share = grid[int(np.argmax(chance))]
        score = (won - lost - rows * end) / math.sqrt(rows * (2 * share + end - end * end))
        assert score == pytest.approx(sign * 1.959964, abs=2e-3)
    assert found.low <= (won - lost) / rows <= found.high


@pytest.mark.parametrize("answers", [1, 2, 7])
def test_pass_at_k_is_the_share_of_all_choices_of_answers_with_one_that_passes(answers: int) -> None:
    """Counted by hand over every subset."""
    for passed in range(answers + 1):
        verdicts = [at < passed for at in range(answers)]
        for tries in range(1, answers + 1):
            choices = list(combinations(verdicts, tries))
            assert pass_at(passed, answers, tries) == pytest.approx(sum(map(any, choices)) / len(choices))
    for wrong in ((answers + 1, answers, 1), (0, answers, 0), (0, answers, answers + 1)):
        with pytest.raises(ValueError, match="tries of"):
            pass_at(*wrong)
