"""A conversation of placeholders as its template renders it: where each answer begins and ends, and what is dropped."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.labels.slots import Marked, Slot
from recipes.problems import printable

Span = tuple[int, int]
_THOUGHT = "</think>"
_LONGEST_CONTROL = 256
"""Characters on each side of a place in which a control token around it lies."""


@dataclass(frozen=True)
class Answer:
    """An answer in a rendered conversation, in characters.

    Attributes:
        turn: index of its turn.
        start: where the prompt of a generation ends, and so the answer begins; what the template adds there is in it.
        own: where the row's own text begins in it.
        end: behind the token that ends it; equal to `text_end` without such a token.
        text_end: behind the last text of the row in it.
        ended: a control token ends it.
        marked: the template marks it as the assistant's; True for a template without marks.
        notes: what the template adds to it, or does not write for a generation.
        behind: what the template writes between its text and its end token, if that is not white space; it is then not
            `ended`.
    """

    turn: int
    start: int
    own: int
    end: int
    text_end: int
    ended: bool
    marked: bool
    notes: tuple[str, ...] = ()
    behind: str = ""


@dataclass(frozen=True)
class Skeleton:
    """The rendered placeholders of one structure of conversations.

    Attributes:
        text: the rendered text.
        places: each placeholder's place in it, in order: (start, end, name). One may have several places, or none.
        answers: the answers, in order.
    """

    text: str
    places: tuple[tuple[int, int, str], ...]
    answers: tuple[Answer, ...]

    def missing(self, marked: Marked) -> list[Slot]:
        """The texts that the template drops."""
        kept = {name for _, _, name in self.places}
        return [slot for name, slot in marked.slots.items() if name not in kept and slot.kind != "schema"]


@dataclass(frozen=True)
class Rendering:
    """What the template makes of one structure: the whole, and for each answer what comes before and with it.

    Attributes:
        text: the whole conversation.
        opened: for each turn of the assistant, the prompt of its generation; None where the template refuses it.
        closed: for each, the conversation up to it, or with a user's turn behind the last one; None likewise.
        spans: what the template marks as the assistant's; None for a template without marks.
    """

    text: str
    opened: dict[int, str | None]
    closed: dict[int, str | None]
    spans: list[Span] | None


def skeleton_of(rendering: Rendering, marked: Marked, controls: re.Pattern[str]) -> Skeleton:
    """Find the answers of a rendered structure.

    Args:
        rendering: what the template makes of it.
        marked: the conversation of placeholders.
        controls: matches the texts of control tokens.
    """
    text = rendering.text
    places = tuple((found.start(), found.end(), found.group()) for found in marked.pattern.finditer(text))
    answers = []
    for turn in rendering.opened:
        mine = _own_places(places, marked, turn)
        if mine:
            before = max((end for _, end, name in places if _is_before(marked.slots[name], turn)), default=0)
            answers.append(_answer(rendering, marked, controls, turn, mine, before))
    return Skeleton(text, places, tuple(answers))


def _own_places(places: Sequence[tuple[int, int, str]], marked: Marked, turn: int) -> list[tuple[int, int, str]]:
    """The places of a turn's texts. A name is found again where a template repeats it, so its first place counts."""
    found: list[tuple[int, int, str]] = []
    names: set[str] = set()
    for start, end, name in places:
        slot = marked.slots[name]
        if slot.turn == turn and slot.kind != "schema" and not (slot.kind == "name" and name in names):
            names.add(name)
            found.append((start, end, name))
    return found


def _is_before(slot: Slot, turn: int) -> bool:
    return slot.turn < turn and slot.kind not in ("name", "schema")


def _answer(
    rendering: Rendering,
    marked: Marked,
    controls: re.Pattern[str],
    turn: int,
    mine: list[tuple[int, int, str]],
    before: int,
) -> Answer:
    text = rendering.text
    first, last = mine[0], max(mine, key=lambda place: place[1])
    start = _beginning(text, rendering.opened[turn], controls, before, first[0])
    own = _own_beginning(text, marked, start, first)
    text_end = last[1]
    end, ended, behind = _ending(text, rendering.closed[turn], controls, last, marked)
    spans = rendering.spans
    inside = spans is None or any(begin < text_end and own < stop for begin, stop in spans)
    begins = own if start is None else start
    notes = _notes(text[begins:own], rendering.opened[turn], begins)
    return Answer(turn, begins, own, end, text_end, ended, inside, notes, behind)


def _notes(added: str, opened: str | None, start: int) -> tuple[str, ...]:
    found = []
    if added.strip():
        found.append(f"the template adds '{printable(added, 60)}' before an answer, which is not counted by the loss")
    rest = "" if opened is None else opened[start:]
    if rest.strip():
        found.append(f"a prompt ends with '{printable(rest, 60)}' when the model answers, but not in these rows")
    return tuple(found)


def _beginning(text: str, opened: str | None, controls: re.Pattern[str], before: int, first: int) -> int | None:
    """Where the prompt of a generation ends; None if the whole text has another beginning of the answer."""
    if opened is None:
        return None
    same = common_beginning(text[:first], opened, controls)
    return same if same > before or (same == before == 0) else None


def _own_beginning(text: str, marked: Marked, start: int | None, first: tuple[int, int, str]) -> int:
    """Where the first text of an answer begins, with white space that belongs to it.

    What stands between the prompt and it is the answer's too if it is white space, which a piece may join to the
    answer, or if it introduces reasoning or a call: the model writes these marks itself.
    """
    at, _, name = first
    if start is None:
        return at
    between = text[start:at]
    if marked.slots[name].kind in ("call", "name") and _THOUGHT in between:
        after = between.rpartition(_THOUGHT)[2].lstrip()  # an empty block of reasoning before a call is the template's
        return at - len(after)
    if not between.strip() or marked.slots[name].kind != "content":
        return start
    lead = _lead(marked, name)
    return at - len(lead) if lead and between.endswith(lead) else at


def _lead(marked: Marked, name: str) -> str:
    """The white space that a turn's content has before its first placeholder."""
    turn = marked.turns[marked.slots[name].turn]
    content = turn.get("content") or ""
    text = content if isinstance(content, str) else str(content[0]["text"])
    before, found, _ = text.partition(name)
    return before if found and not before.strip() else ""


def _ending(
    text: str, closed: str | None, controls: re.Pattern[str], last: tuple[int, int, str], marked: Marked
) -> tuple[int, bool, str]:
    """Where the token that ends an answer ends, whether there is one, and what stands before one that does not count.

    The conversation with another continuation has the same text up to the end of the answer's turn.
    """
    _, at, name = last
    rest = text[at:]
    tail = ""
    if closed is not None and name in closed:
        other = closed[closed.rindex(name) + len(name) :]
        tail = rest[: common_beginning(rest, other, controls)]
    found = list(controls.finditer(tail))
    if found and (not tail[: found[0].start()].strip() or marked.slots[name].kind in ("call", "name")):
        return at + found[-1].end(), True, ""
    following = controls.search(rest)
    if following and not rest[: following.start()].strip():
        return at + following.end(), True, ""
    return at, False, tail[: found[0].start()].strip() if found else ""


def common_beginning(one: str, other: str, controls: re.Pattern[str]) -> int:
    """Length of the common beginning of two texts, which ends between two tokens: never inside a control token."""
    same, least = _equal(one, other), min(len(one), len(other))
    if same == least:
        return same
    for text in (one, other):
        for found in controls.finditer(text, max(0, same - _LONGEST_CONTROL), same + _LONGEST_CONTROL):
            if found.start() < same < found.end():
                return min(same, found.start())
    return same


def _equal(one: str, other: str) -> int:
    """Length of the common beginning of two texts: by halves, because texts of long conversations are long."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Placed:
    """A row's own text in a skeleton: the proof that the template does the same with it as with placeholders.

    Attributes:
        text: the rendered row.
        contents: the places of the row's own texts in it, in order.
    """

    def __init__(self, skeleton: Skeleton, text: str) -> None:
        self.text = text
        self._from: list[int] = []
        self._to: list[int] = []
        self.contents: list[Span] = []
        self._skeleton = skeleton

    def fill(self, marked: Marked) -> int | None:
        """Put the row's texts where the placeholders are; returns the place of the first difference, or None."""
        at, done = 0, 0
        places = self._skeleton.places
        for number, (start, end, name) in enumerate(places):
            literal = self._skeleton.text[done:start]
            if not self.text.startswith(literal, at):
                return at
            self._note(done, at)
            at += len(literal)
            following = self._skeleton.text[end : places[number + 1][0] if number + 1 < len(places) else None]
            length = _length(self.text, at, marked.slots[name].text, following)
            if length is None:
                return at
            self._note(start, at)
            self.contents.append((at, at + length))
            at += length
            done = end
        self._note(done, at)
        if self.text[at:] != self._skeleton.text[done:]:
            return at
        self._note(len(self._skeleton.text), len(self.text))
        return None

    def _note(self, there: int, here: int) -> None:
        self._from.append(there)
        self._to.append(here)

    def place(self, at: int) -> int:
        """The place in the row's text of a place in the skeleton that is not inside a placeholder."""
        number = bisect_right(self._from, at) - 1
        return self._to[number] + at - self._from[number]


def _length(text: str, at: int, core: str, following: str) -> int | None:
    """How many characters a text has where it is rendered: as it is, or escaped as in JSON or in quotes."""
    for form in _forms(core):
        if text.startswith(form, at) and text.startswith(following, at + len(form)):
            return len(form)
    return None


def _forms(core: str) -> Iterator[str]:
    yield core
    yield json.dumps(core, ensure_ascii=False)[1:-1]
    yield json.dumps(core)[1:-1]
    yield core.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
