"""Every name has one split, which depends only on the name and the seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.data.split import SPLITS, assign_splits, keyed_fraction
from recipes.problems import OperatorError

names = st.sets(st.text(min_size=1, max_size=20), min_size=3, max_size=60)
fractions = st.floats(0.01, 0.49)


@given(names, fractions, fractions, st.integers(0, 2**31))
def test_every_name_has_one_split_and_no_requested_split_is_empty(
    given_names: set[str], val: float, test: float, seed: int
) -> None:
    assignment = assign_splits(given_names, val_fraction=val, test_fraction=test, seed=seed)
    parts = [set(assignment.names(split)) for split in SPLITS]
    assert set.union(*parts) == given_names
    assert sum(map(len, parts)) == len(given_names)
    assert all(parts)


@given(names, names, st.integers(0, 2**31))
def test_adding_files_moves_none_of_the_others(before: set[str], added: set[str], seed: int) -> None:
    old = assign_splits(before, val_fraction=0.2, test_fraction=0.2, seed=seed)
    new = assign_splits(before | added, val_fraction=0.2, test_fraction=0.2, seed=seed)
    for name in before - set(old.moved) - set(new.moved):
        assert old.split_of[name] == new.split_of[name]


def test_the_split_does_not_depend_on_the_order_of_the_names() -> None:
    listed = [f"f{number}.py" for number in range(100)]
    forward = assign_splits(listed, val_fraction=0.1, test_fraction=0.1, seed=1)
    backward = assign_splits(reversed(listed), val_fraction=0.1, test_fraction=0.1, seed=1)
    assert forward.split_of == backward.split_of


def test_the_shares_are_about_those_requested_and_the_seed_changes_them() -> None:
    listed = [f"f{number}.py" for number in range(4000)]
    one = assign_splits(listed, val_fraction=0.1, test_fraction=0.2, seed=1)
    assert 340 < len(one.names("val")) < 460
    assert 720 < len(one.names("test")) < 880
    assert one.split_of != assign_splits(listed, val_fraction=0.1, test_fraction=0.2, seed=2).split_of


def test_a_split_that_is_not_requested_stays_empty() -> None:
    assignment = assign_splits(["a", "b"], val_fraction=0, test_fraction=0, seed=0)
    assert assignment.names("train") == ["a", "b"]
    assert not assignment.moved


def test_fewer_documents_than_splits_is_reported_with_what_to_do() -> None:
    with pytest.raises(OperatorError, match=r"2 document.*train, val, test") as raised:
        assign_splits(["a", "b"], val_fraction=0.1, test_fraction=0.1, seed=0)
    assert "val_fraction = 0" in raised.value.hint


def test_the_hash_key_never_changes() -> None:
    assert keyed_fraction(42, "json/decoder.py") == 0.2869576371985118
    assert keyed_fraction(42, "json/decoder.py", "order") == 0.455659717433833
