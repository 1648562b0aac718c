"""Rows as lines: every character is there, what is trained is marked, and nothing reaches the terminal as a command."""

from __future__ import annotations

import random
import unicodedata

import pytest

from cockpit.headless.row_lines import LINE_END, LONGEST_TEXT, facts_line, row_lines
from cockpit.text.safe_text import UNSAFE
from engines.look.row_view import RowView, SpanKind
from tests.cockpit.text.test_safe_text import PAYLOADS

PARTS: list[tuple[str, SpanKind]] = [
    ("<|user|>\n", "template"),
    ("Why?", "content"),
    ("<|end|>\n<|model|>\n", "template"),
    ("Because it is so.<|end|>", "scored"),
    ("\n", "template"),
]


def view_of(parts: list[tuple[str, SpanKind]], **more: object) -> RowView:
    spans, at = [], 0
    for text, kind in parts:
        at += len(text)
        spans.append((at, kind))
    fields = {"number": 1, "where": "a.jsonl:1", "fate": "kept", "text": "".join(text for text, _ in parts), **more}
    return RowView(spans=spans, **fields)  # type: ignore[arg-type]


def test_lines_keep_every_character_and_its_kind() -> None:
    lines = row_lines(view_of(PARTS), 200)
    assert [line.text for line in lines] == [
        f"<|user|>{LINE_END}", f"Why?<|end|>{LINE_END}", f"<|model|>{LINE_END}",
        f"Because it is so.<|end|>{LINE_END}",
    ]  # fmt: skip
    assert lines[3].parts == [("Because it is so.<|end|>", "scored"), (LINE_END, "template")]
    assert [line.margin for line in lines] == [" ", " ", " ", "╎"]


def test_brackets_mark_what_is_trained_where_there_are_no_colours() -> None:
    text = "".join(line.text for line in row_lines(view_of(PARTS), 200, marks=True))
    assert text.count("⟦") == text.count("⟧") == 1
    assert "⟦Because it is so.<|end|>⟧" in text


@pytest.mark.parametrize("width", [4, 17, 80])
def test_no_line_is_wider_than_the_screen_and_wrapping_loses_nothing(width: int) -> None:
    view = view_of([("日本語 text " * 20, "content"), ("answer é " * 30, "scored")])
    lines = row_lines(view, width)
    assert "".join(line.text for line in lines) == view.text
    for line in lines:
        wide = sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line.text)
        assert wide <= width


def test_a_rule_shows_where_a_row_is_cut() -> None:
    kept, off = "kept words", "the rest"
    lines = row_lines(view_of([(kept, "scored"), (off, "cut")], cut_at=len(kept), fate="cut"), 80)
    assert [bool(line.rule) for line in lines] == [False, True, False]
    assert "everything below is cut off" in lines[1].rule
    left = row_lines(view_of([(kept, "cut"), (off, "scored")], cut_at=len(kept), from_left=True, fate="cut"), 80)
    assert "everything above is cut off" in left[1].rule


def test_a_very_long_row_is_drawn_in_part_and_that_is_said() -> None:
    lines = row_lines(view_of([("x" * (LONGEST_TEXT + 1234), "content")]), 100)
    assert "1234 more characters" in lines[-1].rule
    assert sum(len(line.text) for line in lines[:-1]) == LONGEST_TEXT


def test_ten_thousand_hostile_strings_reach_no_terminal() -> None:
    rng = random.Random(11)
    pieces = [*PAYLOADS, "\x1b[2J", "\x9b31m", "\u202e", "\u200b", "\r", "\x00", "a\u0301" * 40, "[/bold]", "⟧", "語"]
    kinds: tuple[SpanKind, ...] = ("template", "content", "scored", "cut")
    for number in range(10_000):
        parts = [("".join(rng.choices(pieces, k=2)), rng.choice(kinds)) for _ in range(1 + number % 3)]
        view = view_of(parts, where=rng.choice(pieces), reason=rng.choice(pieces), fate=rng.choice(("kept", "refused")))
        for line in [*(one.text for one in row_lines(view, 30, marks=True)), facts_line(view)]:
            assert UNSAFE.search(line) is None
