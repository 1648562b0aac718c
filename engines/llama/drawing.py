"""The next token from logits: the likeliest, or drawn by temperature, top-k and top-p, in transformers' order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DrawRules:
    """How tokens are drawn.

    Attributes:
        temperature: 0 for the likeliest token.
        top_p: share of the probability that the kept tokens have together.
        top_k: number of kept tokens; 0 for all.
        repetition_penalty: divides positive logits of tokens that came before, and multiplies negative ones
            (Keskar et al. 2019, CTRL).
        seed: of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def stated(self) -> str | dict[str, float]:
        """The rules as a protocol states them."""
        return "greedy" if self.temperature <= 0 else asdict(self)

    def of_task(self, key: str) -> DrawRules:
        """These rules with random numbers of one task's own: its answer depends neither on the tasks that are answered
        with it nor on what was answered before."""
        digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:8], "little"))


GREEDY = DrawRules()


def likeliest(logits: NDArray[np.float32]) -> int:
    """The likeliest token."""
    return int(logits.argmax())


class Drawer:
    """Draws the tokens of one answer.

    Args:
        rules: how.
        seen: tokens of the prompt.
    """

    def __init__(self, rules: DrawRules, seen: Iterable[int]) -> None:
        self._rules = rules
        self._seen = set(seen)
        self._random = np.random.default_rng(rules.seed)

    def draw(self, logits: NDArray[np.float32]) -> int:
        """The next token.

        Args:
            logits: float32 [vocab_size]; they are not changed.
        """
        rules = self._rules
        scores = logits.astype(np.float64)
        if rules.repetition_penalty != 1.0 and self._seen:
            at = np.fromiter(self._seen, np.int64)
            some = scores[at]
            scores[at] = np.where(some > 0, some / rules.repetition_penalty, some * rules.repetition_penalty)
        token = int(scores.argmax()) if rules.temperature <= 0 else self._sampled(scores / rules.temperature)
        self._seen.add(token)
        return token

    def _sampled(self, scores: NDArray[np.float64]) -> int:
        order = np.argsort(-scores, kind="stable")
        if self._rules.top_k:
            order = order[: self._rules.top_k]
        shares = np.exp(scores[order] - scores[order[0]])
        shares /= shares.sum()
        if self._rules.top_p < 1.0:
            # The token that crosses the share is kept, so that at least one is.
            kept = int(np.searchsorted(np.cumsum(shares), self._rules.top_p)) + 1
            order, shares = order[:kept], shares[:kept] / shares[:kept].sum()
        return int(order[self._random.choice(len(order), p=shares)])
