"""The bands of a MinHash signature: how many rows of it must agree so that two texts are compared."""

from __future__ import annotations

PERMUTATIONS = 128
RECALL = 0.99
"""Share of the pairs at the threshold itself that become candidates; of more similar ones it is higher."""


def bands_of(similarity: float) -> tuple[int, int]:
    """Number of bands, and rows of a band, for a threshold.

    Two rows of similarity s agree in all r numbers of one of b bands with the probability 1 - (1 - s^r)^b. The longest
    bands that still propose `RECALL` of the pairs at the threshold propose the fewest others.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1
