"""The parts of a tensor in a sharded checkpoint make up the whole of it, or the index is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.artifacts.sharded import MAX_BESIDE, Box, ShardsError, require_whole


@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    columns=st.lists(st.integers(1, 4), min_size=1),
    data=st.data(),
)
def test_a_grid_is_whole_in_any_order_and_not_with_a_part_moved_or_missing(
    rows: list[int], columns: list[int], data: st.DataObject
) -> None:
    shape = (sum(rows), sum(columns))
    boxes: list[Box] = [
        ((sum(rows[:i]), sum(columns[:j])), (rows[i], columns[j]))
        for i in range(len(rows))
        for j in range(len(columns))
    ]
    boxes = data.draw(st.permutations(boxes))
    require_whole("w", shape, boxes)
    with pytest.raises(ShardsError, match="not the whole tensor"):
        require_whole("w", shape, boxes[1:])
    if len(boxes) > 1:
        (offset, size), other = boxes[0], boxes[1]
        if size == other[1] and offset != other[0]:
            with pytest.raises(ShardsError, match="not the whole tensor"):
                require_whole("w", shape, [other, *boxes[1:]])


def test_a_scalar_has_one_part() -> None:
    require_whole("count", (), [((), ())])
    with pytest.raises(ShardsError):
        require_whole("count", (), [((), ()), ((), ())])


def test_many_parts_in_one_row_are_compared_at_once_or_refused() -> None:
    many = 200_000
    require_whole("w", (many,), [((at,), (1,)) for at in range(many)])
    beside: list[Box] = [((0, at), (1, 1)) for at in range(MAX_BESIDE + 1)]
    with pytest.raises(ShardsError):
        require_whole("w", (1, MAX_BESIDE + 1), beside)
