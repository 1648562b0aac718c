"""Durations of quantization from measured rates."""

from __future__ import annotations

import pytest

from engines.llama.rates import Work, rates_note

RATES = {"Q8_0": 100.0, "IQ2_XS": 1.0}


def test_work_counts_each_type_by_its_own_rate() -> None:
    work = Work([("Q8_0", 200), ("IQ2_XS", 10), ("Q8_0", 100)], RATES)
    assert work.total_s == pytest.approx(2 + 10 + 1)
    assert work.advance(100) == pytest.approx(1)
    assert work.advance(105) == pytest.approx(7)
    assert work.advance(5) == pytest.approx(12)
    assert work.advance(100) == work.total_s
    assert work.advance(1) == work.total_s


def test_rates_are_listed_slowest_first() -> None:
    assert rates_note({"Q8_0": 3e8, "IQ2_XS": 1e5, "F16": 9e9}) == "IQ2_XS 100k values/s, Q8_0 300M values/s"
