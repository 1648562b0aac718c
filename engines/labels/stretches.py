"""A rendered row as tokens: the template's own marks become control tokens, everything else is text.

The text between two marks is tokenized whole, as in the prompt of a generation, except where an answer begins or ends:
otherwise a piece such as newline-and-backtick could span the end of the prompt and the answer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from engines.labels.skeleton import Span
from engines.labels.vocabulary import Control, Encoded, TokenizerView


class Stretch(msgspec.Struct, frozen=True):
    """A part of a row: a control token, or a text without any. `end` is where it ends in the row's text."""

    start: int
    end: int
    control: Control | None = None
    text: str = ""


def stretches(text: str, contents: Sequence[Span], cuts: Iterable[int], view: TokenizerView) -> list[Stretch]:
    """The parts of a rendered text.

    Args:
        text: the rendered text.
        contents: the row's own texts in it; control tokens spelled there are text.
        cuts: places where an answer begins or ends.
        view: the tokenizer.
    """
    marks = _marks(text, contents, view)
    places = sorted(set(cuts))
    found: list[Stretch] = []
    at, number, taking = 0, 0, False
    for start, end, control in marks:
        number = _add_texts(found, text, at, start, places, number)
        found.append(Stretch(start, end, control))
        at, taking = end, taking or control.lstrip or control.rstrip
    _add_texts(found, text, at, len(text), places, number)
    return _without_blanks(found) if taking else found


def _marks(text: str, contents: Sequence[Span], view: TokenizerView) -> list[tuple[int, int, Control]]:
    """The control tokens that the template itself writes: those that touch no text of the row."""
    begins = [start for start, _ in contents]
    found: list[tuple[int, int, Control]] = []
    at = 0
    while (match := view.spelled.search(text, at)) is not None:
        number = bisect_right(begins, match.end() - 1) - 1
        if number >= 0 and contents[number][1] > match.start():
            at = match.start() + 1
            continue
        found.append((match.start(), match.end(), view.controls[match.group()]))
        at = match.end()
    return found


def _add_texts(found: list[Stretch], text: str, start: int, end: int, places: Sequence[int], number: int) -> int:
    """Add the text from `start` up to `end`, divided at the places, which are sorted; the first that may lie in it has
    the number `number`. Returns the number of the first place behind it."""
    while number < len(places) and places[number] < end:
        if places[number] > start:
            found.append(Stretch(start, places[number], None, text[start : places[number]]))
            start = places[number]
        number += 1
    if start < end:
        found.append(Stretch(start, end, None, text[start:end]))
    return number


def _without_blanks(found: list[Stretch]) -> list[Stretch]:
    """Control tokens that take the blanks beside them take them from the texts."""
    kept: list[Stretch] = []
    for number, one in enumerate(found):
        before = found[number - 1].control if number else None
        after = found[number + 1].control if number + 1 < len(found) else None
        if one.control is not None:
            kept.append(one)
            continue
        text = one.text.lstrip() if before is not None and before.rstrip else one.text
        start = one.end - len(text)
        text = text.rstrip() if after is not None and after.lstrip else text
        if text:
            kept.append(Stretch(start, start + len(text), text=text))
    return kept


def encoded(rows: Sequence[Sequence[Stretch]], view: TokenizerView, *, places: bool = True) -> list[list[Encoded]]:
    """Ids of each stretch of each row; their ends are places in the row's text."""
    asked = [(one.text, at == 0) for row in rows for at, one in enumerate(row) if one.control is None]
    given = iter(view.encode(asked, places=places))
    if places:
        found = [[_one(one, given) for one in row] for row in rows]
    else:
        found = [[next(given) if one.control is None else Encoded([one.control.id], []) for one in row] for row in rows]
    if view.joins:
        found = [_joined(row, ids, view) for row, ids in zip(rows, found, strict=True)]
    return found


def _one(stretch: Stretch, given: Iterator[Encoded]) -> Encoded:
    if stretch.control is not None:
        return Encoded([stretch.control.id], [stretch.end])
    return _placed(stretch, next(given))


def _placed(stretch: Stretch, one: Encoded) -> Encoded:
    return Encoded(one.ids, [stretch.start + end for end in one.ends])


def _joined(row: Sequence[Stretch], found: list[Encoded], view: TokenizerView) -> list[Encoded]:
    """The ids of texts that follow a text as they are in the middle of a text, where the cut is between two pieces."""
    for at in range(1, len(row)):
        one, before = row[at], row[at - 1]
        if one.control is not None or before.control is not None:
            continue
        whole = view.encode([(before.text + one.text, at == 1)], places=bool(found[at].ends))[0]
        count = len(found[at - 1].ids)
        if whole.ids[:count] == found[at - 1].ids and count < len(whole.ids):
            ends = [max(0, end - len(before.text)) for end in whole.ends[count:]]
            found[at] = _placed(one, Encoded(whole.ids[count:], ends))
    return found
