"""Text of numbers: values from the operator read back as the same number, and measured values are rounded."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes import quantities

ROOT = Path(__file__).resolve().parents[2]
SPELLS = {
    "recipes/quantities.py",
    "cockpit/text/formatting.py",
    "exporters/gguf/file_names.py",  # general.size_label, as gguf-py writes it
    "exporters/proof/fixture.py",  # rounds the numbers of a JSON file
}
"""Modules that format floats."""


@settings(max_examples=1000)
@given(st.floats(allow_nan=False))
def test_the_text_of_every_float_reads_back_as_the_same_float(value: float) -> None:
    text = quantities.exact(value)
    assert float(text) == value
    assert math.copysign(1.0, float(text)) == math.copysign(1.0, value)


@settings(max_examples=500)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_text_has_more_digits_than_the_number_needs(value: float) -> None:
    shortest = repr(value).removesuffix(".0").replace("e+", "e").replace("e-0", "e-")
    assert len(quantities.exact(value)) <= max(len(shortest), len(repr(value)))


@given(st.integers(-(10**60), 10**60))
def test_the_text_of_a_whole_number_is_its_digits(value: int) -> None:
    assert quantities.exact(value) == str(value)


@pytest.mark.parametrize("power", range(3, 13))
def test_a_number_of_two_digits_shows_as_it_is_typed(power: int) -> None:
    for tenths in range(10, 100):
        typed = f"{tenths // 10}.{tenths % 10}e-{power}".replace(".0e", "e")
        assert quantities.exact(float(typed)) == typed


@pytest.mark.parametrize(
    "text",
    ["3e-4", "2e-5", "1.5e-3", "9.99e-3", "0.01", "0.05", "0.5", "0.999", "1", "32", "100000", "1048576", "0", "-0",
    "-2.5e-7",
     "1e9", "1.5e8", "9007199254740993", "0.1", "65504", "1e308", "inf", "-inf", "12345678.5"],
)  # fmt: skip
def test_numbers_are_written_as_operators_write_them(text: str) -> None:
    number = int(text) if text.isdecimal() else float(text)
    assert quantities.exact(number) == text
    if text.isdecimal() and int(text) < 2**53:
        assert quantities.exact(float(text)) == text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (quantities.number(0.41834), "0.4183"),
        (quantities.number(None), "n/a"),
        (quantities.number(float("nan")), "nan"),
        (quantities.number(float("-inf")), "-inf"),
        (quantities.number(0.0), "0"),
        (quantities.number(1e-9), "1e-9"),
        (quantities.number(0.00123), "1.23e-3"),
        (quantities.learning_rate(9.1e-5), "9.1e-5"),
        (quantities.learning_rate(3e-4), "3e-4"),
        (quantities.learning_rate(0.05), "0.05"),
        (quantities.learning_rate(2.9876e-4), "2.99e-4"),
        (quantities.loss(2.4129), "2.413"),
        (quantities.count(2130), "2.13k"),
        (quantities.count(999.96), "1k"),
        (quantities.count(412), "412"),
        (quantities.rate(2130.0), "2.13k tok/s"),
        (quantities.rate(None), "n/a"),
        (quantities.size(312 << 20), "312 MiB"),
        (quantities.size(None), "n/a"),
        (quantities.size(1023), "1023 B"),
        (quantities.size(1024), "1 KiB"),
        (quantities.size(24e9), "22.4 GiB"),
        (quantities.duration(5460), "1h31m"),
        (quantities.duration(59.7), "1m00s"),
        (quantities.duration(0.42), "0.42s"),
        (quantities.duration(9.0), "9s"),
        (quantities.duration(2.5), "2.5s"),
        (quantities.duration(9.96), "10s"),
        (quantities.duration(None), "n/a"),
        (quantities.duration(187_200), "2d04h"),
        (quantities.percent(0.9999, 1), "99.9%"),
        (quantities.percent(1.0, 1), "100.0%"),
        (quantities.change(4.0, 3.5), "-12.5%"),
        (quantities.load(57.4), "57%"),
        (quantities.load(None), "n/a"),
        (quantities.temperature(61.0), "61°C"),
        (quantities.bits_per_weight(4.8512), "4.85"),
        (quantities.bits_per_weight(16.0), "16.0"),
    ],
)
def test_quantities_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.floats())
def test_every_float_has_a_text(value: float) -> None:
    for name in (
        "exact",
        "number",
        "loss",
        "learning_rate",
        "count",
        "whole",
        "rate",
        "size",
        "duration",
        "percent",
        "load",
    ):
        assert getattr(quantities, name)(value)


def test_no_other_module_formats_a_float() -> None:
    found = []
    for folder in ("cockpit", "engines", "exporters", "recipes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if str(path.relative_to(ROOT)) not in SPELLS:
                found += [f"{path.relative_to(ROOT)}:{line}" for line in _formats_of_floats(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "text", ['f"{x:.2f}"', 'f"{x:g}"', 'f"{x:6.1%}"', 'f"{x:,}"', 'f"{x:.{n}e}"', '"{:.1f}".format(x)']
)
def test_a_float_formatted_by_hand_is_found(text: str) -> None:
    assert _formats_of_floats(text) == [1]


@pytest.mark.parametrize("text", ['f"{name:>9}"', 'f"{code:04X}"', 'f"{rest:02d}"', 'f"{text:<{width}}"', 'f"{x!r}"'])
def test_widths_and_whole_numbers_are_not_formats_of_floats(text: str) -> None:
    assert _formats_of_floats(text) == []


def _formats_of_floats(code: str) -> list[int]:
    """Lines with a format of a float, or with one that writes commas into a number."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
            words = [part.value for part in node.format_spec.values if isinstance(part, ast.Constant)]
            spec = "".join(word for word in words if isinstance(word, str))
            if spec.endswith(tuple("eEfFgG%n,_")):
                lines.append(node.lineno)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            of = node.func.value
            if isinstance(of, ast.Constant) and isinstance(of.value, str) and "{:" in of.value:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.46 KiB (1.5 kB)"),
        (128e9, "119 GiB (128 GB)"),
        (999_600_000, "953 MiB (1 GB)"),
        (float("nan"), "nan"),
        (None, "n/a"),
    ],
)
def test_a_size_in_both_units_has_the_vendors_in_brackets(value: float | None, text: str) -> None:
    assert quantities.size_in_both(value) == text
