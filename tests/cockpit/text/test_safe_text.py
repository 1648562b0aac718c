from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_lines, safe_text

PAYLOADS = [
    "\x1b]52;c;aGFja2Vk\x07",
    "\x1b]0;title\x07",
    "\x1b[2J\x1b[H",
    "\x9b2J",
    "\x1b[6n",
    "\x1bP+q\x1b\\",
    "\x1b[?1049l",
    "abc\u202edef\u202c",
    "\u2066x\u2069",
    "zero\u200bwidth\u200f",
    "\r\x00\x08\x7f",
    "lone \ud800 surrogate",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_listed_payloads_lose_their_teeth_and_stay_visible(payload: str) -> None:
    shown = safe_text(payload)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in shown)
    assert shown.strip()


@given(st.text(alphabet=st.characters(), max_size=200))
def test_nothing_that_acts_survives(text: str) -> None:
    shown = safe_text(text)
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in shown)
    assert not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 or ord(c) == 0x061C for c in shown)
    assert safe_text(shown) == shown
    shown.encode("utf-8")


def test_markup_is_text_like_any_other() -> None:
    assert safe_text("[/bold][@click=app.quit]x[/]") == "[/bold][@click=app.quit]x[/]"


def test_long_text_is_cut_and_says_so() -> None:
    assert safe_text("x" * 5000, limit=10) == "x" * 9 + "…"
    assert safe_lines("a\nb\r\nc\n" + "d\n" * 500, limit=3)[-1] == "… 501 more lines"


def test_towers_of_marks_are_cut() -> None:
    assert len(safe_text("e" + "\u0301" * 100)) == 4


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (fmt.number(0.41834), "0.4183"),
        (fmt.number(None), "n/a"),
        (fmt.number(float("nan")), "nan"),
        (fmt.number(float("-inf")), "-inf"),
        (fmt.number(0.0), "0"),
        (fmt.number(1e-9), "1e-9"),
        (fmt.learning_rate(9.1e-5), "9.1e-5"),
        (fmt.learning_rate(3e-4), "3e-4"),
        (fmt.count(2130), "2.13k"),
        (fmt.count(999.96), "1k"),
        (fmt.count(412), "412"),
        (fmt.rate(2130.0), "2.13k tok/s"),
        (fmt.rate(None), "n/a"),
        (fmt.size(312 << 20), "312 MiB"),
        (fmt.size(None), "n/a"),
        (fmt.size(1023), "1023 B"),
        (fmt.size(1024), "1 KiB"),
        (fmt.of_total(88 << 30, 128 << 30), "88/128G"),
        (fmt.of_total(None, 128 << 30), "n/a"),
        (fmt.duration(5460), "1h31m"),
        (fmt.duration(59.7), "1m00s"),
        (fmt.duration(0.42), "0.42s"),
        (fmt.duration(9.96), "10s"),
        (fmt.duration(None), "n/a"),
        (fmt.duration(187_200), "2d04h"),
        (fmt.percent(0.9999, 1), "99.9%"),
        (fmt.percent(1.0, 1), "100.0%"),
        (fmt.tick(250.0, 250.0), "250"),
        (fmt.tick(0.3, 0.1), "0.3"),
        (fmt.tick(2.5, 2.5), "2.5"),
        (fmt.tick(1250.0, 250.0), "1.25k"),
        (fmt.tick(1e-4, 5e-5), "1e-4"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.floats())
def test_every_float_has_a_text(value: float) -> None:
    for write in (fmt.number, fmt.learning_rate, fmt.count, fmt.size, fmt.duration, fmt.percent):
        assert write(value)
    assert fmt.clock(value) if value == value else True
