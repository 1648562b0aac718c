"""A row of data as lines: what the loss counts, the row's own text, the template's, and the place where it is cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from engines.look.row_view import RowView, SpanKind

LONGEST_TEXT = 60_000
"""Characters of a row that are drawn; the lines say how many follow."""
LINE_END = "⏎"
OPENS, CLOSES = "⟦", "⟧"
"""Around what the loss counts, where there are no colours."""
TRAINED, PARTLY, UNTRAINED = "┃", "╎", " "
"""The margin of a line: everything on it is trained, a part of it, or nothing."""


@dataclass
class RowLine:
    """One line: its parts with their kinds; `rule` for the line where the row is cut."""

    parts: list[tuple[str, SpanKind]] = field(default_factory=list)
    rule: str = ""

    @property
    def text(self) -> str:
        """The line without colours."""
        return self.rule or "".join(part for part, _ in self.parts)

    @property
    def margin(self) -> str:
        """How much of the line is trained, as a glyph."""
        kinds = {kind for _, kind in self.parts}
        if "scored" not in kinds:
            return UNTRAINED
        return TRAINED if kinds == {"scored"} else PARTLY


def row_lines(view: RowView, width: int, *, marks: bool = False) -> list[RowLine]:
    """The text of a row in lines of at most `width` cells, safe to draw.

    Args:
        view: the row.
        width: cells; the mark of a line's end may take one more.
        marks: put brackets around what the loss counts.
    """
    lines: list[RowLine] = [RowLine()]
    for text, kind in _parts(view, marks=marks):
        if kind is None:
            lines += [RowLine(rule=text), RowLine()]
            continue
        for number, piece in enumerate(text.split("\n")):
            if number:
                _append(lines[-1], LINE_END, kind)
                lines.append(RowLine())
            _append(lines[-1], safe_text(piece, None), kind)
    lines = [short for line in lines for short in _wrapped(line, max(2, width))]
    left = len(view.text) - LONGEST_TEXT
    if left > 0:
        lines.append(RowLine(rule=f"… {fmt.whole(left)} more characters"))
    return [line for line in lines if line.parts or line.rule]


def facts_line(view: RowView, last: int = 0) -> str:
    """Where a row is, its tokens, and what becomes of it, on one line."""
    number = f"row {fmt.whole(view.number)}" + (f" of {fmt.whole(last)}" if last else "")
    part = f", example {view.part}" if view.part else f", {view.answer}" if view.answer else ""
    return "  ".join([f"{number}{part}", safe_text(view.where, 300), *facts(view)])


def facts(view: RowView) -> list[str]:
    """The tokens of a row and what becomes of it."""
    if view.fate == "raw":
        return ["no tokens: the model is not known"]
    if view.fate in ("refused", "unreadable"):
        return [f"refused: {safe_text(view.reason, 1000)}"]
    kept = view.tokens - view.lost
    share = f" ({fmt.percent(view.scored / kept)})" if kept > 0 and view.scored else ""
    words = [fmt.counted(view.tokens, "token"), f"{fmt.whole(view.scored)} trained{share}"]
    if view.fate == "dropped":
        words.append(f"left out: {safe_text(view.reason, 300)}")
    if view.fate == "cut":
        side = "beginning" if view.from_left else "end"
        words.append(f"{fmt.counted(view.lost, 'token')} at its {side} cut off")
    return words


def _parts(view: RowView, *, marks: bool) -> Iterator[tuple[str, SpanKind | None]]:
    """Text with its kind, in order; the kind is None for the line where the row is cut."""
    rule = "──── cut: " + ("everything above is cut off" if view.from_left else "everything below is cut off")
    start = 0
    for end, kind in view.spans or [(len(view.text), "content")]:
        if start >= LONGEST_TEXT:
            return
        cut_here = view.cut_at == start and start > 0
        if cut_here:
            yield rule, None
        text = view.text[start : min(end, LONGEST_TEXT)]
        yield (f"{OPENS}{text}{CLOSES}" if marks and kind == "scored" else text), kind
        start = end


def _append(line: RowLine, text: str, kind: SpanKind) -> None:
    if not text:
        return
    if line.parts and line.parts[-1][1] == kind:
        line.parts[-1] = (line.parts[-1][0] + text, kind)
    else:
        line.parts.append((text, kind))


def _wrapped(line: RowLine, width: int) -> Iterator[RowLine]:
    """A line in lines of at most `width` cells, broken after spaces; a longer word is broken anywhere."""
    text = line.text
    if line.rule or (text.isascii() and len(text) <= width):
        yield line
        return
    start, used, space = 0, 0, -1
    breaks = []
    for at, character in enumerate(text):
        cells = _cells(character)
        if used + cells > width and character != LINE_END:
            end = space + 1 if space >= start else at
            breaks.append(end)
            start = end
            used = sum(map(_cells, text[end:at]))
        if character == " ":
            space = at
        used += cells
    yield from _broken(line, breaks)


def _broken(line: RowLine, breaks: list[int]) -> Iterator[RowLine]:
    """A line broken at these places of its text."""
    ends = iter([*breaks, len(line.text) + 1])
    found, at, end = RowLine(), 0, next(ends)
    for text, kind in line.parts:
        rest = text
        while rest:
            taken, rest = rest[: end - at], rest[end - at :]
            _append(found, taken, kind)
            at += len(taken)
            if at == end:
                yield found
                found, end = RowLine(), next(ends)
    yield found


def _cells(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
