"""The order in which rows of similar lengths come together, without torch, so that a plan can compute it too."""

from __future__ import annotations

import random
from collections.abc import Sequence

_GROUPS, _WINDOWS = 4, 50
"""Rows are sorted in groups of at most 50 windows, and in at least 4 groups where there are enough rows."""


def grouped_by_length(lengths: Sequence[int], window: int, seed: int, epoch: int) -> list[int]:
    """The rows of an epoch by their indices, as transformers' `group_by_length` orders them.

    Rows are shuffled, divided into groups, and each group is sorted by length, the longest row of all first: memory
    that is too small shows at once.

    Args:
        lengths: tokens of each row.
        window: rows of an optimizer step.
        seed: of the training.
        epoch: from 0.
    """
    indices = list(range(len(lengths)))
    random.Random(f"{seed}, {epoch}").shuffle(indices)  # noqa: S311 - an order, not a secret
    size = window * max(1, min(len(lengths) // (window * _GROUPS), _WINDOWS))
    groups = [
        sorted(indices[start : start + size], key=lambda index: -lengths[index])
        for start in range(0, len(indices), size)
    ]
    if groups:
        longest = max(range(len(groups)), key=lambda number: lengths[groups[number][0]])
        groups[0][0], groups[longest][0] = groups[longest][0], groups[0][0]
    return [index for group in groups for index in group]
