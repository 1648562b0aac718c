from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.columns.column import MappedColumn, in_memory, span

numbers = st.lists(st.floats(width=32, allow_nan=False), max_size=30)


@given(numbers, numbers, st.sampled_from(["d", "f"]), st.data())
def test_a_mapped_column_is_like_an_array(
    stored: list[float], added: list[float], kind: Literal["d", "f"], data: st.DataObject
) -> None:
    column, whole = MappedColumn(memoryview(array(kind, stored))), array(kind, stored)
    for number in added[:5]:
        column.append(number)
    column.extend(added[5:])
    whole.extend(added)
    at = st.integers(-len(whole) - 3, len(whole) + 3)
    a, b = data.draw(at), data.draw(at)
    assert (len(column), list(column)) == (len(whole), list(whole))
    assert list(column[a:b]) == list(whole[a:b])
    assert list(column[a:]) == list(whole[a:])
    assert column.tobytes() == whole.tobytes()
    assert in_memory(column) == whole
    assert list(span(column, min(abs(a), len(whole)), len(whole))) == list(whole[min(abs(a), len(whole)) :])
    if -len(whole) <= a < len(whole):
        assert column[a] == whole[a]
    else:
        with pytest.raises(IndexError):
            column[a]
    ordered = MappedColumn(memoryview(array(kind, sorted(stored))))
    assert bisect_left(ordered, 1.5) == bisect_left(sorted(stored), 1.5)


def test_a_part_that_is_all_of_the_file_is_no_copy() -> None:
    stored = array("d", range(100))
    column = MappedColumn(memoryview(stored))
    part = span(column, 10, 20)
    stored[15] = -1.0
    assert part[5] == -1.0
