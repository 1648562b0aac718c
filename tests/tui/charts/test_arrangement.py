"""Which charts a screen shows of those that a page has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cockpit.tui.charts.arrangement import arrangement


@given(st.integers(1, 6), st.integers(0, 5), st.booleans(), st.booleans(), st.booleans())
def test_the_chosen_chart_is_shown_and_all_that_are_shown_have_a_place(
    count: int, chosen: int, wide: bool, alone: bool, crowded: bool
) -> None:
    chosen = min(chosen, count - 1)
    found = arrangement(count, chosen, wide=wide, alone=alone, crowded=crowded)
    assert chosen in found.shown
    assert set(found.shown) <= set(range(count))
    assert len(found.shown) <= found.columns * found.rows
