"""The check `number`: the number that an answer ends with, in the form of GSM8K."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from engines.judging.text_checks import shown

MARK = "####"
"""Stands before the result in an answer of GSM8K."""
MOST_DIGITS = 400
_NUMBER = re.compile(r"(?:(?<![\w)])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\d))?")


def number(answer: str, expected: str, settings: Mapping[str, Any]) -> str:
    """The answer's number equals the expected one, or differs by at most `tolerance`. Returns why not, else empty."""
    wanted, got = final_number(expected), final_number(answer)
    if wanted is None:
        return f"the expected answer has no number: {shown(expected)}"
    if got is None:
        return "the answer has no number"
    tolerance = Decimal(str(settings.get("tolerance", 0)))
    return "" if abs(got - wanted) <= tolerance else f"got {_short(got)}; expected {_short(wanted)}"


def final_number(text: str) -> Decimal | None:
    """The first number after the last `####`, else the last number of the text; None without one.

    Commas between digits, signs of currency and percent, and the full stop of a sentence do not count.
    """
    _, marked, after = text.rpartition(MARK)
    if marked:
        first = _NUMBER.search(after)
        return _value(first.group()) if first is not None else None
    last = None
    for found in _NUMBER.finditer(text):
        last = found.group()
    return None if last is None else _value(last)


def _value(text: str) -> Decimal | None:
    digits = text.replace(",", "")
    return Decimal(digits) if len(digits) <= MOST_DIGITS else None


def _short(value: Decimal) -> str:
    return str(value)[:40]
