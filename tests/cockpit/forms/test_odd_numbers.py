"""Numbers that nobody means: each is refused in its row, or is within the field's limits and is what was typed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cockpit.forms.model import FormModel
from cockpit.forms.values import read_value
from recipes.fields import FieldSpec, fields_of
from recipes.stages.registry import STAGE_TYPES

TYPED = [
    "1e308", "-1e308", "1e400", "-1e400", "nan", "-nan", "inf", "-inf", "-1", "-0.0", "0", "9" * 30, "9" * 400,
    "1e-400", "5e-324", "2e9", "1e10", "9223372036854775808", "0x10", "1_000", "\uff11\uff12", "\u0663", "--1", "1e",
    "1.5.2", "\xbd", "true", "1;2", "1\x1b[2J",
]  # fmt: skip


def text_of(tag: str) -> str:
    """A recipe with one stage of a kind; other problems than the tried value's do not matter."""
    kind, _, output = tag.partition("-")
    lines = ["schema = 1", 'name = "odd"', "[[stage]]", 'name = "one"', f'kind = "{kind}"']
    return "\n".join([*lines, *([f'output = "{output}"'] if output else [])]) + "\n"


def numbers_of(tag: str) -> list[FieldSpec]:
    return [spec for spec in fields_of(tag) if spec.kind in {"int", "float"}]


def within(spec: FieldSpec, value: float) -> bool:
    """Whether a value is in the limits that a field states."""
    limits = spec.bounds
    return (
        math.isfinite(value)
        and (limits.ge is None or value >= limits.ge)
        and (limits.gt is None or value > limits.gt)
        and (limits.le is None or value <= limits.le)
        and (limits.lt is None or value < limits.lt)
        and (not spec.choices or str(int(value)) in spec.choices)
    )


@pytest.mark.parametrize("tag", STAGE_TYPES)
def test_an_odd_number_is_refused_in_its_row_or_is_in_the_fields_limits(tmp_path: Path, tag: str) -> None:
    model = FormModel(text_of(tag), tmp_path / "odd.toml")
    specs = numbers_of(tag)
    assert specs
    for spec in specs:
        for typed in TYPED:
            model.set(0, spec.path, typed)
            model.check()
            row = model.row(0, spec.path)
            assert row is not None
            value = read_value(typed, spec.kind)
            if not row.problems:
                assert isinstance(value, int | float), (spec.path, typed)
                assert within(spec, value), (spec.path, typed, value)
        model.set(0, spec.path, "")


def test_digits_of_another_script_are_text_as_in_toml() -> None:
    assert read_value("\u0661e-5", "float") == "\u0661e-5"
    assert read_value("\u0663", "int") == "\u0663"
