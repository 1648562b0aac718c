from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.runs.series import Series
from cockpit.text.axes import Domain, fitted, kept, step_domain, ticks, time_domain
from cockpit.tui.charts.canvas import bad_columns, draw, spans_of
from cockpit.tui.charts.chart import BAD, ChartData, draw_chart
from cockpit.tui.look.theme import CROSS


def series_of(values: list[float | None]) -> Series:
    series = Series()
    for index, value in enumerate(values):
        series.append(index, value)
    return series


UNIT = Domain(0.0, 1.0)


def test_a_rising_line_touches_every_column_and_both_corners() -> None:
    spans = spans_of(series_of([0.0, 1.0]), 0, 1, 40, UNIT)
    assert all(span is not None for span in spans)
    rows = draw([(2, spans)], [], 20, 5)
    assert rows[4].text[0] != " "
    assert rows[0].text[19] != " "
    assert rows[0].text[0] == " "
    assert {len(row.text) for row in rows} == {20}


def test_a_nan_breaks_the_line_where_it_is_and_nowhere_else() -> None:
    values: list[float | None] = [0.5] * 11
    values[5] = math.nan
    spans = spans_of(series_of(values), 0, 10, 100, UNIT)
    assert all(span is None for span in spans[41:60])
    assert all(span is not None for span in (*spans[:41], *spans[60:]))


def test_a_value_that_was_not_measured_does_not_break_the_line() -> None:
    values: list[float | None] = [0.5] * 11
    values[5] = None
    assert all(spans_of(series_of(values), 0, 10, 100, UNIT))


@settings(max_examples=30)
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=3, max_size=2000), st.integers(2, 60))
def test_every_value_lies_within_what_its_column_covers(values: list[float], columns: int) -> None:
    series = series_of(list(values))
    x1 = float(len(values) - 1)
    spans = spans_of(series, 0, x1, columns, UNIT)
    for index, value in enumerate(values):
        if math.isfinite(value):
            column = min(columns - 1, int(index / x1 * columns))
            span = spans[column]
            assert span is not None
            assert span[0] - 1e-9 <= value <= span[1] + 1e-9


def test_an_average_is_drawn_as_far_as_it_was_computed_while_its_positions_go_on() -> None:
    """A chart that gets another size between two pictures draws what it has."""
    series = series_of([float(number) for number in range(20)])
    average = series.ema(0.9)
    for number in range(20, 40):
        series.append(float(number), float(number))
    y = Domain(0, 40)
    for columns in (8, 200):
        spans = spans_of(average, 0, 39, columns, y)
        assert any(span is not None for span in spans[: columns // 3])
        assert all(span is None for span in spans[columns // 2 + 1 :])


def test_nan_marks_are_on_the_top_row_in_red() -> None:
    values: list[float | None] = [1.0] * 100
    values[50] = math.nan
    series = series_of(values)
    assert bad_columns(series, 0, 99, 40) == [20]
    rows = draw_chart(ChartData("loss", series, (0.0, 99.0)), Domain(0, 2), 46, 10)
    [at] = [x for x, character in enumerate(rows[1].text) if character == CROSS]
    assert rows[1].styles[at] == BAD


@settings(max_examples=60)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    st.integers(20, 60),
    st.booleans(),
)
def test_values_of_any_size_are_drawn_within_the_chart(values: list[float], width: int, log: bool) -> None:
    """A damaged record of the machine has a load of 1e300 percent, whose label is longer than the screen."""
    data = ChartData("cpu load", series_of([*values]), (0.0, 5.0), label=lambda value, _step: f"{value:.0f}%", log=log)
    rows = draw_chart(data, fitted(min(values), max(values), log=log), width, 10)
    assert {(len(row.text), len(row.styles)) for row in rows} == {(width, width)}


def test_a_million_nans_cost_one_mark_per_column() -> None:
    series = series_of([math.nan] * 50_000)
    assert bad_columns(series, 0, 49_999, 30) == list(range(30))


def test_ticks_are_round_and_inside() -> None:
    assert ticks(Domain(0, 10), 6)[0] == [0, 2, 4, 6, 8, 10]
    assert ticks(Domain(0.31, 2.9), 4)[0] == [1.0, 2.0]
    assert ticks(Domain(1e-3, 10, log=True), 6)[0] == [1e-3, 1e-2, 1e-1, 1, 10]


@settings(max_examples=200)
@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.booleans(), st.integers(1, 12))
def test_ticks_never_leave_the_axis(lo: float, span: float, log: bool, most: int) -> None:
    domain = fitted(abs(lo) + 1e-9, abs(lo) + span, log=True) if log else fitted(lo, lo + span)
    values, _ = ticks(domain, most)
    assert len(values) <= most
    tolerance = 1e-6 * max(abs(domain.lo), abs(domain.hi))
    assert all(domain.lo - tolerance <= v <= domain.hi + tolerance for v in values)
    assert all(0 <= domain.share(v) <= 1 for v in values)


def test_an_axis_stays_while_the_data_fits_and_fills_it() -> None:
    first = kept(None, 0.5, 3.0)
    assert kept(first, 0.45, 3.0) is first
    assert kept(first, 0.5, 4.0) is not first
    assert kept(first, 0.5, 1.0) is not first


def test_the_step_axis_is_fitted_to_what_exists_and_the_plan_is_an_option() -> None:
    assert step_domain(820, 412) == (0, 500)
    assert step_domain(820, 412, plan=True) == (0, 820)
    assert step_domain(820, 412, ended=True) == (0, 412)
    assert step_domain(820, 805) == (0, 820)
    assert step_domain(None, 412) == (0, 500)
    assert step_domain(None, 3) == (0, 10)
    assert step_domain(100, 101) == (0, 125)
    assert time_domain(1000, 1090) == (1000, 1120)
    assert time_domain(1000, 1090, ended=True) == (1000, 1090)


@given(st.integers(10, 10**7), st.integers(1, 10**8))
def test_at_least_three_quarters_of_the_step_axis_are_filled(reached: int, total: int) -> None:
    """The first hour of a run of 30 hours fills the width, too."""
    left, right = step_domain(max(total, reached), reached)
    assert left == 0
    assert reached <= right
    assert reached >= 0.74 * right


@given(st.floats(50, 1e7))
def test_at_least_two_thirds_of_the_time_axis_are_filled(seconds: float) -> None:
    start, end = time_domain(1000.0, 1000.0 + seconds)
    assert start + seconds <= end + 1e-6
    assert seconds >= 0.66 * (end - start)


def test_ascii_charts_have_no_character_beyond_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COCKPIT_GLYPHS", "ascii")
    rows = draw_chart(ChartData("loss", series_of([1.0, math.nan, 2.0]), (0.0, 2.0), limit=1.5), Domain(0, 2), 40, 10)
    assert all(row.text.isascii() for row in rows)
