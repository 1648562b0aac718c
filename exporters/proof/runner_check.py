"""Compares a runtime's answer with a reference: greedy ids token by token, and log-probabilities if reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporters.proof.fixture import Prompt
from exporters.proof.runner import Answer

STRICT_GAP, LOOSE_GAP = 0.01, 0.5
"""Another token is a tie if the reference's logit for it is this close to its largest. The first is for F32 and F16
files, compared with the model. The second is for BF16 and quantized files, compared with llama.cpp on the same file,
because runtimes round activations differently there."""


@dataclass(frozen=True)
class Difference:
    """The first token that differs. `gap`: the reference's largest logit minus its logit of this token; None if that
    logit was not kept."""

    index: int
    expected: int | None
    got: int | None
    gap: float | None


@dataclass(frozen=True)
class Agreement:
    """The comparison of one prompt's answer with a reference.

    Attributes:
        tokens: length of the reference's answer.
        equal: tokens before the first difference.
        difference: the first difference.
        max_delta: greatest distance of the log-probabilities of the reference's largest logits, nats, over the
            positions up to the first difference; None if the runtime reports none.
        passed: the answers are equal or differ by a tie, and all log-probabilities are finite.
    """

    tokens: int
    equal: int
    difference: Difference | None
    max_delta: float | None
    passed: bool

    def record(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def agree(reference: Prompt, answer: Answer, stops: Sequence[int], limit: int, tie_gap: float) -> Agreement:
    """Compare an answer with the reference's.

    Args:
        reference: the prompt with the expected answer.
        answer: the runtime's answer.
        stops: tokens that end an answer; a runtime may omit the one that ended it.
        limit: maximum number of tokens of an answer; further tokens are ignored.
        tie_gap: another token passes if its logit is less than this below the largest.
    """
    expected, got = reference.greedy_ids, answer.ids[:limit]
    if got == expected[:-1] and expected[-1] in stops:
        got = expected
    equal = next(
        (i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got))
    )
    difference = None
    if equal < max(len(expected), len(got)):
        difference = _difference(reference, got, equal)
    delta = _max_delta(reference, answer, equal)
    tie = difference is None or (difference.gap is not None and difference.gap < tie_gap)
    passed = tie and (delta is None or math.isfinite(delta))
    return Agreement(len(expected), equal, difference, delta, passed)


def _difference(reference: Prompt, got: Sequence[int], index: int) -> Difference:
    token = got[index] if index < len(got) else None
    if index >= len(reference.greedy_ids):  # the runtime continued after the end of the answer
        return Difference(index, None, token, None)
    position = reference.after(index)
    logits = dict(position.top)
    gap = position.top[0][1] - logits[token] if token in logits else None
    return Difference(index, reference.greedy_ids[index], token, gap)


def _max_delta(reference: Prompt, answer: Answer, equal: int) -> float | None:
    """The greatest distance over the positions with the reference's own context; None without log-probabilities."""
    rows = answer.log_probabilities
    if rows is None:
        return None
    largest = 0.0
    for index in range(min(equal + 1, len(rows), len(reference.greedy_ids))):
        position = reference.after(index)
        for token, logit in position.top:
            if token in rows[index]:
                distance = abs(rows[index][token] - (logit - position.logsumexp))
                largest = distance if not distance <= largest else largest  # keeps a NaN
                if math.isnan(largest):
                    return largest
    return largest
