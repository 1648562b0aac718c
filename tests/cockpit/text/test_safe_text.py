from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit.text.safe_text import error_text, safe_lines, safe_text

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
def test_known_payloads_become_harmless_and_stay_visible(payload: str) -> None:
    shown = safe_text(payload)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in shown)
    assert shown.strip()


@given(st.text(alphabet=st.characters(), max_size=200))
def test_no_control_or_invisible_character_survives(text: str) -> None:
    shown = safe_text(text)
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in shown)
    assert not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 or ord(c) == 0x061C for c in shown)
    assert safe_text(shown) == shown
    shown.encode("utf-8")


def test_markup_is_plain_text() -> None:
    assert safe_text("[/bold][@click=app.quit]x[/]") == "[/bold][@click=app.quit]x[/]"


def test_long_text_is_cut_and_ends_with_an_ellipsis() -> None:
    assert safe_text("x" * 5000, limit=10) == "x" * 9 + "…"
    assert safe_lines("a\nb\r\nc\n" + "d\n" * 500, limit=3)[-1] == "… 501 more lines"


def test_stacks_of_combining_marks_are_cut() -> None:
    assert len(safe_text("e" + "\u0301" * 100)) == 4


def test_an_error_of_several_rows_has_a_line_for_each() -> None:
    shown = error_text("2 rows cannot be used:\nt:1  no\x1b[2J answer\nt:2  no prompt", "correct them")
    assert shown == "cockpit: 2 rows cannot be used:\nt:1  no␛[2J answer\nt:2  no prompt\n  correct them"
    assert error_text("no file") == "cockpit: no file"
