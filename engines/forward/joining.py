"""Micro-batches of an optimizer step that go through the model together, because their rows leave room for it.

Memory must allow the micro-batch of the longest rows, so it allows several of short rows at once; each pass through the
model has a fixed cost, whatever it has of rows. Joined micro-batches have the same rows, the same loss and the same
gradients up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nlargest
from itertools import accumulate, chain
from typing import Any

import torch

from engines.forward.label_loss import LOSS_TOKENS, REAL_TOKENS, SCORED_AT

_TENSORS = ("input_ids", "labels", "position_ids")


def most_tokens(lengths: Sequence[int], rows: int) -> int:
    """Tokens of the micro-batch that has the longest rows.

    Args:
        lengths: tokens of each row of the data.
        rows: rows of a micro-batch.
    """
    return sum(nlargest(rows, lengths))


def join(batches: Sequence[Mapping[str, Any]], longest: int) -> list[dict[str, Any]]:
    """The same rows in the same order, in as few sequences as `longest` allows without dividing a micro-batch.

    Args:
        batches: micro-batches, each one sequence of rows: int64 [1, tokens] and the rows' `lengths`.
        longest: tokens of the longest joined sequence; a longer micro-batch is not joined.

    Returns:
        As many batches as given, because the Trainer counts them. Those that are over are without rows, and come first:
        the last one of an optimizer step must have gradients.
    """
    groups: list[list[Mapping[str, Any]]] = []
    room = 0
    for batch in batches:
        tokens = batch["input_ids"].shape[1]
        if tokens > room:
            groups.append([])
            room = longest
        groups[-1].append(batch)
        room -= tokens
    empty = [_without_rows(batches[0]) for _ in range(len(batches) - len(groups))] if batches else []
    return empty + [_one(group) for group in groups]


def has_rows(batch: Mapping[str, Any]) -> bool:
    """Whether a micro-batch that `join` returned has rows."""
    return bool(batch["lengths"])


def _one(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if len(group) == 1:
        return dict(group[0])
    joined: dict[str, Any] = {name: torch.cat([batch[name] for batch in group], dim=1) for name in _TENSORS}
    joined["lengths"] = tuple(chain.from_iterable(batch["lengths"] for batch in group))
    if all(SCORED_AT in batch for batch in group):
        starts = accumulate((batch["input_ids"].shape[1] for batch in group[:-1]), initial=0)
        joined[SCORED_AT] = torch.cat([batch[SCORED_AT] + start for batch, start in zip(group, starts, strict=True)])
        joined |= {name: sum(batch[name] for batch in group) for name in (LOSS_TOKENS, REAL_TOKENS)}
    return joined


def _without_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: batch[name][:, :0] for name in _TENSORS} | {"lengths": (), LOSS_TOKENS: 0, REAL_TOKENS: 0}
