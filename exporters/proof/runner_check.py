"""Does a runtime say what the model says? Greedy ids token by token, and log-probabilities where it tells them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporters.proof.fixture import Prompt
from exporters.proof.runner import Answer

STRICT_GAP, LOOSE_GAP = 0.01, 0.5
"""Another token is a tie where the reference's logit for it is this close to its largest: for files of F32 and F16
against
the model; for BF16 and quantized files against llama.cpp on the same file, because runtimes round their activations in
different ways there."""


@dataclass(frozen=True)
class Difference:
    """The first token that is another one. `gap`: how much less its logit is in the reference; None where that is not
    known
    to be more than the smallest of the logits that are kept."""

    index: int
    expected: int | None
    got: int | None
    gap: float | None


@dataclass(frozen=True)
class Agreement:
    """One prompt's answer against a reference.

    Attributes:
        tokens: length of the reference's answer.
        equal: tokens before the first difference.
        difference: the first one.
        max_delta: greatest distance of the log-probabilities of the reference's largest logits, nats, over the
            positions up to
            the first difference; None where the runtime tells none.
        passed: no difference but a tie, and no log-probability that is not finite.
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
    """Hold an answer against the reference's.

    Args:
        reference: the prompt with the answer to expect.
        answer: what the runtime said.
        stops: tokens that end an answer; a runtime may leave the one that ended it out.
        limit: most tokens of an answer; what a runtime says after it does not count.
        tie_gap: another token passes where its logit is less than this below the largest.
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
    said = got[index] if index < len(got) else None
    if index >= len(reference.greedy_ids):  # it went on where the answer had ended
        return Difference(index, None, said, None)
    position = reference.after(index)
    logits = dict(position.top)
    gap = position.top[0][1] - logits[said] if said in logits else None
    return Difference(index, reference.greedy_ids[index], said, gap)


def _max_delta(reference: Prompt, answer: Answer, equal: int) -> float | None:
    """Over the positions whose context is the reference's own."""
    rows = answer.log_probabilities
    if rows is None:
        return None
    largest = 0.0
    for index in range(min(equal + 1, len(rows), len(reference.greedy_ids))):
        position = reference.after(index)
        for token, logit in position.top:
            if token in rows[index]:
                distance = abs(rows[index][token] - (logit - position.logsumexp))
                largest = distance if not distance <= largest else largest  # a NaN stays
                if math.isnan(largest):
                    return largest
    return largest
