"""Variety and length of texts, by hand."""

from __future__ import annotations

import pytest

from engines.judging.text_metrics import lengths, variety


def test_words_and_pairs_are_counted_over_all_texts() -> None:
    found = variety(["a b a", "a c"])
    assert found["distinct_1"] == 3 / 5  # a, b, c of five words
    assert found["distinct_2"] == 3 / 3  # a b, b a, a c
    assert found["repetition"] == 0


def test_a_loop_is_repetition_and_a_text_of_different_words_is_not() -> None:
    loop = "to be or not " * 5  # 17 sequences of four words, 4 of them different
    assert variety([loop])["repetition"] == pytest.approx(1 - 4 / 17)
    assert variety(["one two three four five six"])["repetition"] == 0
    assert variety([loop, "short"])["repetition"] == pytest.approx((1 - 4 / 17) / 2)


def test_texts_without_words_have_no_distinct_words() -> None:
    assert variety(["", " \n"]) == {"repetition": 0.0}
    assert "distinct_2" not in variety(["one"])


def test_a_fence_is_no_word() -> None:
    assert variety(["```python\nx\n```"]) == variety(["python\nx"])


def test_lengths_have_a_mean_a_high_quantile_and_the_share_that_ended() -> None:
    found = lengths([10, 20, 30, 40], [True, True, False, True], "answer_tokens")
    assert found == {"answer_tokens": 25, "answer_tokens_p95": pytest.approx(38.5), "ended": 0.75}
