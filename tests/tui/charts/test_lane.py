"""Marks have a lane: every one is seen, none is behind a label, and evaluations never hide the curve."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.runs.series import Series
from cockpit.text.axes import fitted
from cockpit.tui.charts.canvas import Row, spans_of
from cockpit.tui.charts.chart import EVAL, LINE, ChartData, draw_chart
from cockpit.tui.charts.lane import GLYPHS, Lane, LaneMark, MarkKind, placed

SIZES = [(39, 7), (39, 6), (39, 5), (39, 4), (60, 17), (158, 30)]


def drawn(steps: int, evaluations: int, size: tuple[int, int], marks: list[LaneMark] | None = None) -> list[Row]:
    """A chart of a falling loss with evaluations that lie on the curve."""
    noise = random.Random(evaluations)
    raw, points = Series(), Series()
    for step in range(1, steps + 1):
        raw.append(step, 0.4 + 2.6 * math.exp(-6 * step / steps) + noise.gauss(0, 0.05))
    for number in range(1, evaluations + 1):
        step = number * steps // evaluations
        points.append(step, 0.42 + 2.6 * math.exp(-6 * step / steps))
    data = ChartData(
        "loss",
        raw,
        (0.0, float(steps)),
        smooth=raw.ema(0.9),
        points=points if evaluations else None,
        marks=Lane(marks or []),
    )
    extent = raw.extent()
    assert extent is not None
    return draw_chart(data, fitted(*extent), *size)


def columns_of(rows: list[Row], style: int) -> set[int]:
    return {x for row in rows[1:] for x, found in enumerate(row.styles) if found == style}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("evaluations", [1, 8, 60, 108, 400, 4000])
def test_evaluations_hide_at_most_a_quarter_of_the_loss_curve(evaluations: int, size: tuple[int, int]) -> None:
    steps = 54_000 if evaluations > 100 else 6_000
    bare = columns_of(drawn(steps, 0, size), LINE)
    left = columns_of(drawn(steps, evaluations, size), LINE)
    assert len(left) >= 0.74 * len(bare)
    rows = drawn(steps, evaluations, size)
    dots = sum(row.text.count("●") for row in rows)
    assert 1 <= dots <= max(2, size[0] // 4)
    assert columns_of(rows, EVAL)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("steps", [(100, 200), (0, 820), (410, 411), (819, 820), (1, 2)])
def test_two_checkpoints_are_exactly_two_marks(steps: tuple[int, int], size: tuple[int, int]) -> None:
    rows = drawn(820, 8, size, [LaneMark(float(step), MarkKind.CHECKPOINT) for step in steps])
    assert sum(row.text.count("◆") for row in rows) == 2


@pytest.mark.parametrize("size", SIZES)
def test_no_mark_is_behind_a_label(size: tuple[int, int]) -> None:
    positions = [float(step) for step in range(0, 821, 41)][: size[0] // 4]
    rows = drawn(820, 0, size, [LaneMark(x, MarkKind.CHECKPOINT) for x in positions])
    assert sum(row.text.count("◆") for row in rows) == len(positions)
    if size[1] >= 6:
        assert "820" in rows[-1].text, "the labels have a row of their own"


def test_kinds_differ_in_glyph_with_and_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [LaneMark(float(100 * n), kind) for n, kind in enumerate(MarkKind, 1)]
    for glyphs, choose in (("braille", lambda g: g.character), ("ascii", lambda g: g.ascii)):
        monkeypatch.setenv("COCKPIT_GLYPHS", glyphs)
        rows = drawn(820, 0, (60, 17), marks)
        for kind in MarkKind:
            assert sum(row.text.count(choose(GLYPHS[kind])) for row in rows[-2:-1]) == 1, kind
        if glyphs == "ascii":
            assert all(row.text.isascii() for row in rows)


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.sampled_from(MarkKind)), max_size=400),
    st.integers(18, 160),
)
def test_a_lane_is_decimated_and_the_most_important_marks_stay(found: list[tuple[float, MarkKind]], width: int) -> None:
    marks = [LaneMark(x, kind) for x, kind in found]
    lane = placed(marks, (0.0, 1000.0), width)
    columns = [mark.column for mark in lane]
    assert columns == sorted(set(columns))
    assert all(0 <= column < width for column in columns)
    for kind in MarkKind:
        assert sum(mark.kind == kind for mark in lane) <= sum(mark.kind == kind for mark in marks)
    guards = [mark for mark in marks if mark.kind == MarkKind.GUARD]
    if guards:
        assert any(mark.kind == MarkKind.GUARD for mark in lane)
    saved = sorted(mark.column for mark in lane if mark.kind == MarkKind.CHECKPOINT)
    if len(saved) > width // 2 and len(marks) == sum(mark.kind == MarkKind.CHECKPOINT for mark in marks):
        assert len(saved) <= width // 2 + 1


@pytest.mark.parametrize("points", [40, 4000])
def test_a_gap_in_the_measuring_is_drawn_as_a_gap(points: int) -> None:
    series = Series()
    for number in range(points):
        series.append(number if number < points // 2 else number + points, 1.0)
    x1 = 2.0 * points
    spans = spans_of(series, 0.0, x1, 80, fitted(0.5, 1.5), longest=4.0)
    assert all(span is None for span in spans[22:58])
    assert all(span is not None for span in (*spans[:19], *spans[62:79]))
    assert all(span is not None for span in spans_of(series, 0.0, x1, 80, fitted(0.5, 1.5))[:79])
