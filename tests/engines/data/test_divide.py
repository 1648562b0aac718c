"""Splits have exactly the requested sizes, and no group is in two of them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.data.preparing import divide as dividing
from engines.data.preparing.divide import SplitWish, wanted_rows
from engines.data.preparing.sorted_rows import Sorter
from engines.data.split import SPLITS, keyed_fraction
from recipes.problems import OperatorError


def divide(sizes: list[int], order: list[int], wanted: dict[str, int]) -> list[str]:
    """The names of the splits of groups."""
    with TemporaryDirectory() as folder:
        groups = Sorter(Path(folder), 3)
        groups.add(*np.array([order, range(len(sizes)), sizes], dtype=np.uint64))
        found = ["train"] * len(sizes)
        for names, splits in dividing.divide(groups.table(), wanted, Path(folder)):
            for name, split in zip(names.tolist(), splits.tolist(), strict=True):
                found[name] = SPLITS[split]
    return found


def order_of(count: int, seed: int = 0) -> list[int]:
    return [int(keyed_fraction(seed, str(number)) * 2**63) for number in range(count)]


@pytest.mark.parametrize(
    ("rows", "wish", "sizes"),
    [
        (298, SplitWish(0.1, 0.1), (238, 29, 31)),
        (10, SplitWish(0.1, 0.1), (8, 1, 1)),
        (1000, SplitWish(0.29, 0.01), (700, 290, 10)),  # in binary, 1000 * 0.29 is below 290
        (100, SplitWish(0.05, 0.05), (90, 5, 5)),
        (298, SplitWish(0.1, 0.0), (269, 29, 0)),
        (298, SplitWish(0.0, 0.1), (268, 0, 30)),
        (298, SplitWish(0.0, 0.0), (298, 0, 0)),
        (298, SplitWish(0.1, 0.1, val_rows=40), (229, 40, 29)),
        (298, SplitWish(0.1, 0.1, val_rows=40, test_rows=8), (250, 40, 8)),
        (298, SplitWish(0.1, 0.1, val_rows=0, test_rows=0), (298, 0, 0)),
        (298, SplitWish(0.1, 0.1, test_rows=8), (261, 29, 8)),
        (5, SplitWish(0.05, 0.05), (3, 1, 1)),  # a requested split is not empty
        (3, SplitWish(0.49, 0.49), (1, 1, 1)),
    ],
)
def test_train_and_val_are_rounded_down_and_test_gets_the_rest(
    rows: int, wish: SplitWish, sizes: tuple[int, int, int]
) -> None:
    assert tuple(wanted_rows(rows, wish).values()) == sizes


@pytest.mark.parametrize(
    ("rows", "wish"),
    [(2, SplitWish(0.1, 0.1)), (40, SplitWish(val_rows=30, test_rows=10)), (40, SplitWish(0.1, 0.1, val_rows=400))],
)
def test_more_held_out_rows_than_there_are_rows_are_refused(rows: int, wish: SplitWish) -> None:
    with pytest.raises(OperatorError, match=f"cannot divide {rows} row"):
        wanted_rows(rows, wish)


@given(st.integers(3, 5000), st.sampled_from([0.0, 0.05, 0.1, 0.29, 0.49]), st.sampled_from([0.0, 0.05, 0.1, 0.49]))
def test_the_sizes_add_up_and_no_requested_split_is_empty(rows: int, val: float, test: float) -> None:
    wish = SplitWish(val, test)
    wanted = wanted_rows(rows, wish)
    assert sum(wanted.values()) == rows
    assert [split for split in SPLITS if wanted[split]] == wish.requested


def test_single_rows_give_the_exact_sizes_and_an_order_that_only_the_keys_decide() -> None:
    wanted = wanted_rows(298, SplitWish(0.1, 0.1))
    found = divide([1] * 298, order_of(298), wanted)
    assert Counter(found) == wanted
    assert found != divide([1] * 298, order_of(298, seed=1), wanted)


def distance(sizes: list[int], found: list[str], split: str, wanted: dict[str, int]) -> int:
    return abs(sum(size for size, name in zip(sizes, found, strict=True) if name == split) - wanted[split])


@given(st.lists(st.integers(1, 40), min_size=3, max_size=12), st.sampled_from([0.05, 0.1, 0.3]), st.integers(0, 3))
def test_groups_of_any_sizes_give_the_nearest_possible_test_split(sizes: list[int], share: float, seed: int) -> None:
    wanted = wanted_rows(sum(sizes), SplitWish(share, share))
    found = divide(sizes, order_of(len(sizes), seed), wanted)
    assert set(found) == set(SPLITS)
    possible = [
        abs(sum(some) - wanted["test"]) for count in range(1, len(sizes) - 1) for some in combinations(sizes, count)
    ]
    assert distance(sizes, found, "test", wanted) == min(possible)


@given(st.lists(st.integers(1, 400), min_size=30, max_size=60))
def test_with_groups_of_one_row_among_them_every_size_is_exact(sizes: list[int]) -> None:
    sizes = [*sizes, *[1] * 400]
    wanted = wanted_rows(sum(sizes), SplitWish(0.1, 0.1))
    found = divide(sizes, order_of(len(sizes)), wanted)
    assert [distance(sizes, found, split, wanted) for split in SPLITS] == [0, 0, 0]


def test_a_large_group_does_not_push_the_others_out_of_the_order() -> None:
    sizes = [500, *[1] * 500]
    wanted = wanted_rows(1000, SplitWish(0.1, 0.1))
    order = [0, *order_of(500)]
    found = divide(sizes, order, wanted)
    assert found[0] == "train"
    lowest = sorted(range(1, 501), key=lambda group: order[group])[: wanted["test"]]
    assert {found[group] for group in lowest} == {"test"}


def test_fewer_groups_than_splits_are_refused() -> None:
    with pytest.raises(OperatorError, match="cannot divide 2 group"):
        divide([50, 50], [1, 2], {"train": 80, "val": 10, "test": 10})
