"""The check `choice`: the letter of one of several choices."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from engines.judging.text_checks import plain, shown

_MARKUP = re.compile(r"[*_`$\\]|boxed")
_STATED = re.compile(r"(?:answer|choice|option)(?: is)? ?:? ?[({]?([A-Z])(?![A-Za-z'])", re.IGNORECASE)
_USUAL_CHOICES = 4
_LEADING = re.compile(r"[({]?([A-Z])(?:[)}.:,]|$)")


def choice(answer: str, expected: str, settings: Mapping[str, Any]) -> str:
    """The answer chooses the expected letter, or the choice with the expected text. Returns why not, else empty."""
    choices = settings.get("choices") or []
    wanted = letter_of(expected, choices)
    got = chosen_letter(answer, choices)
    if got is None:
        return f"the answer chooses no letter: {shown(answer)}"
    return "" if got == wanted else f"chose {got}; expected {wanted}"


def by_chance(settings: Mapping[str, Any]) -> float:
    """How often an answer at random passes; choices that the row does not list count as four."""
    return 1 / (len(settings.get("choices") or ()) or _USUAL_CHOICES)


def letter_of(expected: str, choices: Sequence[str]) -> str | None:
    """The letter of the expected answer, which is a letter or the text of a choice; None if it is neither."""
    text = expected.strip()
    if len(text) == 1 and text.upper() in string.ascii_uppercase[: len(choices) or 26]:
        return text.upper()
    same = [at for at, one in enumerate(choices) if plain(one) == plain(text)]
    return string.ascii_uppercase[same[0]] if len(same) == 1 else None


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer chooses; None if that is not clear.

    In this order: the last "answer is B" or "answer: B", a letter at the beginning ("B", "(B)", "B. Paris"), a line
    that is a letter alone, the one choice whose text the answer is or contains.
    """
    letters = string.ascii_uppercase[: len(choices) or 26]
    lines = [" ".join(_MARKUP.sub("", line).split()) for line in answer.split("\n")]
    text = " ".join(line for line in lines if line)
    stated = [found.group(1).upper() for found in _STATED.finditer(text) if found.group(1).isupper()]
    leading = _LEADING.match(text)
    alone = [line.strip("(){}.: ") for line in lines]
    found = [
        *reversed([letter for letter in stated if letter in letters]),
        *([leading.group(1)] if leading is not None else []),
        *reversed([line for line in alone if len(line) == 1]),
    ]
    sure = next((letter for letter in found if letter in letters), None)
    return sure if sure is not None else _by_text(text, choices)


def _by_text(text: str, choices: Sequence[str]) -> str | None:
    words = f" {plain(text)} "
    within = [at for at, one in enumerate(choices) if plain(one) and f" {plain(one)} " in words]
    return string.ascii_uppercase[within[0]] if len(within) == 1 else None
