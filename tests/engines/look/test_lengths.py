"""Histograms and the tokens of a training."""

from __future__ import annotations

import random

import pytest

from engines.look.lengths import BARS, MOST_BARS, histogram, tokens_read
from engines.look.order import first_examples
from recipes.stages.finetune import FinetuneStage


def stage(**fields: object) -> FinetuneStage:
    return FinetuneStage.model_validate({"name": "t", "kind": "finetune", "model": "m", "data": "d", **fields})


@pytest.mark.parametrize("cut", [0, 7, 64, 100, 512, 2048])
def test_every_length_is_in_one_bar_and_a_bar_ends_where_rows_are_cut(cut: int) -> None:
    rng = random.Random(cut)
    for spread in (1, 30, 900, 40_000):
        lengths = [1 + rng.randrange(spread) for _ in range(200)]
        bars = histogram(lengths, cut)
        assert sum(count for *_, count in bars) == 200
        assert all(first <= last for first, last, _ in bars)
        assert [bar[0] for bar in bars[1:]] == [bar[1] + 1 for bar in bars[:-1]]
        assert bars[0][0] <= min(lengths)
        assert bars[-1][1] >= max(lengths)
        if cut and min(lengths) <= cut < max(lengths):
            assert cut in {last for _, last, _ in bars}
            assert len(bars) <= MOST_BARS
        else:
            assert len(bars) <= BARS
    assert histogram([]) == []


def test_the_tokens_of_a_training_are_those_of_the_examples_that_its_steps_read() -> None:
    lengths = [3, 50, 7, 20, 11, 9, 2]
    training = stage(per_device_train_batch_size=2, gradient_accumulation_steps=2, seed=5)
    assert tokens_read(training, lengths, 2) == sum(lengths), "two steps are an epoch: windows of four and of three"
    order = first_examples(5, 1, 7, 4)
    assert len(set(order)) == 4
    assert tokens_read(training, lengths, 3) == sum(lengths) + sum(lengths[index] for index in order)


@pytest.mark.parametrize("examples", [1, 2, 7, 300])
def test_an_order_is_a_permutation_and_its_beginning_does_not_depend_on_how_much_is_wanted(examples: int) -> None:
    whole = first_examples(3, 0, examples, examples)
    assert sorted(whole) == list(range(examples))
    assert first_examples(3, 0, examples, examples // 2) == whole[: examples // 2]
