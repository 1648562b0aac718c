"""Values as TOML on one line."""

from __future__ import annotations

import math
import tomllib
from datetime import UTC, date, datetime, time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.spelling import spell, spell_key

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans() | TEXTS | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def alike(one: Any, other: Any) -> bool:
    """Equal in value and type, all the way down."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    return type(one) is type(other) and bool(one == other)


@settings(max_examples=500)
@given(VALUES)
def test_a_spelled_value_is_one_line_of_visible_characters_and_reads_back_with_its_type(value: Any) -> None:
    text = spell(value)
    assert text.isprintable()
    assert alike(tomllib.loads(f"v = {text}")["v"], value)


@settings(max_examples=200)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_any_text_can_be_a_key(parts: list[str]) -> None:
    found: Any = tomllib.loads(f"{spell_key(*parts)} = 1")
    for part in parts:
        found = found[part]
    assert found == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-4, "2e-4"),
        (1.5e-3, "1.5e-3"),
        (32.0, "32.0"),
        (32, "32"),
        (1e9, "1e9"),
        (-0.0, "-0.0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (True, "true"),
        ('a "b"\n', '"a \\"b\\"\\n"'),
        ("\u2028", '"\\u2028"'),
        (["F16", 0.5], '["F16", 0.5]'),
        ({"a b": 1}, '{ "a b" = 1 }'),
        ({}, "{}"),
        (date(2026, 11, 20), "2026-11-20"),
        (time(21, 30), "21:30:00"),
        (datetime(2026, 11, 20, tzinfo=UTC), "2026-11-20T00:00:00+00:00"),
    ],
)  # fmt: skip
def test_values_are_spelled_as_authors_write_them(value: Any, text: str) -> None:
    assert spell(value) == text


@pytest.mark.parametrize("value", [None, object(), {1, 2}, b"x"])
def test_what_toml_cannot_express_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot contain"):
        spell(value)
