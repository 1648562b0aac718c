"""Statistics of the values of an evaluation: quantiles, and comparisons of two models on the same rows.

All of them are at 95 % confidence, and all give the same result each time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.judging.shares.counts import CONFIDENCE, Interval

RESAMPLES = 10_000
SEED = 0
"""Of the bootstrap's resamples."""


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The percentile interval of mean(first) - mean(second), from resampled rows. Efron and Tibshirani (1993),
    An Introduction to the Bootstrap, chapter 13.

    Args:
        first: one value for each row.
        second: the values of the same rows.
        resamples: number of resamples.
        seed: of their random numbers.
        confidence: of the interval.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} values are not pairs")
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    # Drawing rows with replacement is drawing how often each distinct difference comes: a multinomial distribution.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=resamples)
    means = drawn @ values / len(differences)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lies, interpolated linearly; with few values it is near the
    largest."""
    if not values:
        raise ValueError("no values")
    return float(np.quantile(np.asarray(values, np.float64), share))
