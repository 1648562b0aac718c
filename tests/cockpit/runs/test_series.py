from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.runs.series import Series, joined

VALUES = st.one_of(
    st.none(),
    st.floats(-1e6, 1e6),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0]),
)


def series_of(values: list[float | None]) -> Series:
    series = Series()
    for index, value in enumerate(values):
        series.append(index, value)
    return series


def brute(values: list[float | None], start: float, stop: float, closed: bool) -> tuple[float, float, bool] | None:
    inside = [v for i, v in enumerate(values) if v is not None and start <= i and (i <= stop if closed else i < stop)]
    finite = [v for v in inside if math.isfinite(v)]
    if not inside:
        return None
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    return low, high, len(finite) < len(inside)


def same(a: tuple[float, float, bool] | None, b: tuple[float, float, bool] | None) -> bool:
    return repr(a) == repr(b) or (a is not None and b is not None and a == b)


@settings(max_examples=60)
@given(st.lists(VALUES, max_size=700), st.integers(1, 40), st.data())
def test_an_envelope_is_the_extent_of_each_columns_values(
    values: list[float | None], columns: int, data: st.DataObject
) -> None:
    series = Series()
    pieces = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    done = 0
    for piece in [*pieces, len(values)]:  # the pyramid grows between readings
        for index in range(done, piece):
            series.append(index, values[index])
        done = piece
        series.extent()
    upto = data.draw(st.one_of(st.none(), st.integers(0, len(values))))
    seen = values if upto is None else values[:upto]
    x1 = max(1.0, len(values) * data.draw(st.floats(0.3, 1.5)))
    width = x1 / columns
    edges = [0.0 + c * width for c in range(columns)] + [x1]
    got = series.envelope(0.0, x1, columns, upto)
    want = [brute(seen, edges[c], edges[c + 1], c == columns - 1) for c in range(columns)]
    assert all(same(a, b) for a, b in zip(got, want, strict=True)), (got, want)


def test_one_spike_among_many_points_is_in_the_envelope() -> None:
    series = series_of([1.0] * 100_000)
    series.append(100_000, 77.0)
    series.extend((100_001 + i, 1.0) for i in range(100_000))
    assert max(column[1] for column in series.envelope(0, 200_001, 90) if column) == 77.0


def test_a_value_that_was_not_measured_is_neither_a_point_nor_a_gap() -> None:
    series = series_of([1.0, None, 3.0])
    assert series.envelope(0, 3, 3) == [(1.0, 1.0, False), None, (3.0, 3.0, False)]
    assert list(series.bad) == []


def test_a_nan_is_a_gap_and_takes_no_part_in_extents() -> None:
    series = series_of([1.0, math.nan, math.inf, 3.0])
    assert series.extent() == (1.0, 3.0)
    assert list(series.bad) == [1, 2]
    assert [column is not None and column[2] for column in series.envelope(0, 4, 4)] == [False, True, True, False]


def test_decreasing_positions_are_sorted() -> None:
    series = Series()
    series.extend([(1.0, 10.0), (5.0, 50.0), (3.0, None), (2.0, 20.0)])
    assert list(series.x) == [1.0, 2.0, 3.0, 5.0]
    assert series.is_absent(2)
    series.append(4.0, 40.0)
    assert list(series.x) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert series.extent() == (10.0, 50.0)


@settings(max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200), st.sampled_from([0.0, 0.6, 0.9, 0.99]))
def test_smoothing_in_pieces_equals_smoothing_at_once(values: list[float], alpha: float) -> None:
    grown = Series()
    for index, value in enumerate(values):
        grown.append(index, value)
        if index % 7 == 0:
            grown.ema(alpha)
    total = weight = 0.0
    for index, value in enumerate(values):
        total = alpha * total + (1 - alpha) * value
        weight = alpha * weight + (1 - alpha)
        assert math.isclose(grown.ema(alpha).y[index], total / weight, rel_tol=1e-6, abs_tol=1e-9), "32 bits"


def test_smoothing_starts_at_the_first_value_and_keeps_the_gap() -> None:
    smooth = series_of([4.0, math.nan, 4.0]).ema(0.99)
    assert math.isclose(smooth.y[0], 4.0)
    assert math.isnan(smooth.y[1])
    assert math.isclose(smooth.y[2], 4.0)


def test_joined_series_are_in_order() -> None:
    whole = joined([series_of([5.0, 6.0]), series_of([7.0, None])])
    assert list(whole.x) == [0.0, 0.0, 1.0, 1.0]
    assert whole.last() == 6.0


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=1, max_size=300), st.data())
def test_an_envelope_of_a_growing_series_is_that_of_the_whole_one(
    values: list[float | None], data: st.DataObject
) -> None:
    grown, sizes = Series(), [(0.0, 300.0, 7), (50.0, 120.0, 30)]
    for index, value in enumerate(values):
        grown.append(index if data.draw(st.booleans()) else index + 0.5, value)
        if index % 5 == 0:
            x0, x1, columns = data.draw(st.sampled_from(sizes))
            whole = Series()
            whole.extend(
                (x, None if grown.is_absent(n) else y) for n, (x, y) in enumerate(zip(grown.x, grown.y, strict=True))
            )
            assert repr(grown.envelope(x0, x1, columns)) == repr(whole.envelope(x0, x1, columns))


def test_an_envelope_reads_only_the_columns_that_a_new_point_can_change(monkeypatch: pytest.MonkeyPatch) -> None:
    series = Series()
    series.extend((float(n), float(n % 97)) for n in range(50_000))
    series.envelope(0.0, 100_000.0, 100)
    drawn: list[tuple[int, int]] = []
    real = Series._column
    monkeypatch.setattr(Series, "_column", lambda self, a, b: (drawn.append((a, b)), real(self, a, b))[1])
    series.append(50_000.0, 1.0)
    series.envelope(0.0, 100_000.0, 100)
    assert sum(stop - start for start, stop in drawn) <= 1001, "one column of a hundred"
