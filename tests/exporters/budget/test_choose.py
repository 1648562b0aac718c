"""The choice of tensor types under a size: within the budget, near the optimum, never worse with more bytes."""

from __future__ import annotations

import random
from itertools import pairwise, product

import pytest

from exporters.budget.choose import Option, choose

Options = dict[str, list[Option]]


def made(seed: int, matrices: int = 5) -> Options:
    """Matrices of several sizes; each type is four times as exact as the one before, with some noise."""
    rng = random.Random(seed)
    found: Options = {}
    for number in range(matrices):
        size, scale = rng.choice([100, 200, 300]), rng.expovariate(1.0)
        errors = [scale * 0.25**bits * rng.uniform(0.7, 1.4) for bits in range(4)]
        found[f"m{number}"] = [Option(f"T{bits}", size * (3 + bits), error) for bits, error in enumerate(errors)]
    return found


def sums(chosen: dict[str, Option]) -> tuple[int, float]:
    return sum(option.bytes for option in chosen.values()), sum(option.error for option in chosen.values())


def optimum(options: Options, budget: int) -> float:
    every = (sums(dict(zip(options, row, strict=True))) for row in product(*options.values()))
    return min(error for size, error in every if size <= budget)


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_fits_and_is_near_the_best_of_all(seed: int) -> None:
    options = made(seed)
    least, most = (sum(found[index].bytes for found in options.values()) for index in (0, -1))
    for share in (0.1, 0.4, 0.7, 1.0):
        budget = int(least + share * (most - least))
        size, error = sums(choose(options, budget))
        assert size <= budget
        assert error <= 1.1 * optimum(options, budget)


def test_more_bytes_give_less_error() -> None:
    options = made(3, matrices=20)
    least, most = (sum(found[index].bytes for found in options.values()) for index in (0, -1))
    steps = [sums(choose(options, budget))[1] for budget in range(least, most + 1, (most - least) // 25)]
    assert all(later <= 1.05 * earlier for earlier, later in pairwise(steps))
    assert steps[-1] < 0.05 * steps[0]


def test_a_budget_above_all_takes_the_most_exact_and_one_below_all_the_smallest() -> None:
    options = made(1)
    assert {option.type for option in choose(options, 10**9).values()} == {"T3"}
    assert {option.type for option in choose(options, 0).values()} == {"T0"}


def test_a_larger_type_that_is_not_better_is_never_taken() -> None:
    options = {"m": [Option("small", 10, 1.0), Option("worse", 20, 2.0), Option("best", 30, 0.5)]}
    assert choose(options, 29)["m"].type == "small"
    assert choose(options, 30)["m"].type == "best"
