"""How varied and how repetitive texts are, and how long: what a person sees first in the samples of a bad model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from engines.judging.fences import FENCE
from engines.judging.statistics import quantile

GRAM = 4
"""Words of a sequence that counts as repeated when a text has it again."""


def variety(texts: Iterable[str]) -> dict[str, float]:
    """`distinct_1`, `distinct_2` and `repetition` of texts; words are what stands between white space.

    - `distinct_n`, for n = 1 and 2: different sequences of n words of all texts, divided by all sequences of n words.
      Li et al. (2016), A Diversity-Promoting Objective Function for Neural Conversation Models, NAACL, section 5
      (distinct-1, distinct-2). Left out where no text has n words.
    - `repetition`: mean over the texts of 1 - different / all sequences of four words; a text of fewer words counts as
      0. Welleck et al. (2020), Neural Text Generation with Unlikelihood Training, ICLR, section 6.1 (seq-rep-4, there
      of tokens).

    Args:
        texts: at least one.
    """
    words = [text.replace(FENCE, " ").split() for text in texts]
    found: dict[str, float] = {}
    for size in (1, 2):
        grams = [gram for one in words for gram in _grams(one, size)]
        if grams:
            found[f"distinct_{size}"] = len(set(grams)) / len(grams)
    return {**found, "repetition": fmean(map(_repeated, words))}


def lengths(tokens: Sequence[int], ended: Sequence[bool], name: str) -> dict[str, float]:
    """Mean and 95th percentile of lengths in tokens as `name` and `name_p95`, and `ended`: the share of texts that the
    model ended before the limit.

    Args:
        tokens: of each text, at least one.
        ended: whether the model ended each text itself.
        name: of the mean.
    """
    return {name: fmean(tokens), f"{name}_p95": quantile(tokens, 0.95), "ended": sum(ended) / len(ended)}


def _repeated(words: Sequence[str]) -> float:
    grams = _grams(words, GRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
