"""Numbers in narrow columns, on axes and clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.text import formatting as fmt
from cockpit.text.axes import Domain, fitted
from recipes import quantities


def test_screens_and_messages_have_the_same_functions() -> None:
    for name in ("exact", "number", "loss", "learning_rate", "count", "rate", "size", "duration", "percent"):
        assert getattr(fmt, name) is getattr(quantities, name)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (fmt.of_total(88 << 30, 128 << 30), "88/128 GiB"),
        (fmt.of_total(None, 128 << 30), "n/a"),
        (fmt.of_total(312 << 20, None), "312 MiB"),
        (fmt.minutes(359.0), "5m"),
        (fmt.minutes(5460), "1h31m"),
        (fmt.ago(0.4), "0s ago"),
        (fmt.ago(3.7), "3s ago"),
        (fmt.ago(125.0), "2m05s ago"),
        (fmt.ago(-1.2), "0s ago"),
        (fmt.ago(-3600.0), "dated 1h00m ahead"),
        (fmt.epoch(0.5), "0.50"),
        (fmt.share_done(0.0575), "  5.7%"),
        (fmt.share_done(1.0), "100.0%"),
        (fmt.tick(250.0, 250.0), "250"),
        (fmt.tick(0.3, 0.1), "0.3"),
        (fmt.tick(2.5, 2.5), "2.5"),
        (fmt.tick(1250.0, 250.0), "1.25k"),
        (fmt.tick(1e-4, 5e-5), "1e-4"),
        (fmt.time_tick(0.0), "0"),
        (fmt.time_tick(30.0), "30s"),
        (fmt.time_tick(150.0), "2.5m"),
        (fmt.time_tick(43_200.0), "12h"),
        (fmt.time_tick(259_200.0), "3d"),
        (fmt.counted(0, "record"), "0 records"),
        (fmt.counted(1, "record"), "1 record"),
        (fmt.counted(2, "record"), "2 records"),
    ],
)
def test_numbers_are_formatted_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.floats())
def test_every_float_has_a_text(value: float) -> None:
    for write in (fmt.size, fmt.clock, lambda number: fmt.of_total(number, number)):
        assert write(value)


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(1, None, "1 row"), (0, None, "0 rows"), (12, 1, "12 of 1 row"), (1, 2, "1 of 2 rows"), (1500, None, "1.5k rows")],
)
def test_one_of_a_unit_is_singular(done: int, total: int | None, text: str) -> None:
    assert fmt.of_unit(done, total, "rows") == text


def test_an_axis_of_zeros_begins_at_zero() -> None:
    assert fitted(0.0, 0.0) == Domain(0.0, 1.0)
    assert fitted(5.0, 5.0).contains(5.0, 5.0)
