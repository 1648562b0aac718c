"""Lengths of examples: their histogram, and the tokens that a training reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engines.forward.order import grouped_by_length
from engines.look.order import first_examples
from recipes.stages.finetune import FinetuneFields
from recipes.stages.steps import steps_per_epoch
from recipes.stages.training import TrainingFields

BARS, MOST_BARS = 12, 24
_STEPS = (1, 2, 5)


def histogram(lengths: Sequence[int], cut: int = 0) -> list[tuple[int, int, int]]:
    """Bars from the shortest to the longest: first and last length of each, and the number in it.

    The bars have equal widths; where rows are much longer than the cut, the last bar is wider.

    Args:
        lengths: numbers above 0.
        cut: a length that should be the end of a bar, such as max_length; 0 for none.
    """
    if not lengths:
        return []
    longest = max(lengths)
    width = _width(min(lengths), longest, cut if min(lengths) <= cut < longest else 0)
    counts = Counter((length - 1) // width for length in lengths)
    found = [
        (width * bar + 1, width * (bar + 1), counts.get(bar, 0))
        for bar in range(min(counts), min(max(counts), min(counts) + MOST_BARS - 2) + 1)
    ]
    rest = len(lengths) - sum(count for _, _, count in found)
    return [*found, (found[-1][1] + 1, longest, rest)] if rest else found


def _width(shortest: int, longest: int, cut: int) -> int:
    """The smallest width of 1, 2, 5, 10, … with at most `BARS` bars; with a cut, one that divides it."""

    def bars(width: int) -> int:
        return (longest - 1) // width - (shortest - 1) // width + 1

    if cut:
        divisors = (cut // parts for parts in range(cut, 0, -1) if cut % parts == 0)
        return next((width for width in divisors if bars(width) <= BARS), cut)
    width = 1
    while True:
        for step in _STEPS:
            if bars(width * step) <= BARS:
                return width * step
        width *= 10


def tokens_read(stage: TrainingFields, lengths: Sequence[int], steps: int) -> int:
    """The tokens of all steps of a training, each example's as often as it is read; lengths are those after the cut."""
    epochs, rest = divmod(steps, steps_per_epoch(stage, len(lengths)))
    window = stage.rows_per_step
    if isinstance(stage, FinetuneFields) and stage.train_sampling_strategy == "group_by_length":
        order = grouped_by_length(lengths, window, stage.seed, epochs)[: rest * window]
    else:
        order = first_examples(stage.seed, epochs, len(lengths), rest * window)
    return epochs * sum(lengths) + sum(lengths[index] for index in order)
