"""Changes of a document's text that a recipe asks for, counted by document."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

_CONTROL = {number: None for number in (*range(32), *range(127, 160)) if chr(number) not in "\t\n\r\x85"}


class Cleaner:
    """Applies the changes in a fixed order, whatever the order of the recipe.

    Attributes:
        changed: documents that a change has changed, by its name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """`names` are words of `recipes.stages.prepare.Cleaning`."""
        self._steps = [(name, step) for name, step in _STEPS.items() if name in names]
        self.changed: Counter[str] = Counter()

    def clean(self, text: str) -> str:
        """The changed text."""
        for name, step in self._steps:
            after = step(text)
            if after != text:
                self.changed[name] += 1
                text = after
        return text


def _composed(text: str) -> str:
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _without_control(text: str) -> str:
    return text.translate(_CONTROL)


def _line_ends(text: str) -> str:
    for end in ("\r\n", "\r", "\x85", "\u2028", "\u2029"):
        text = text.replace(end, "\n")
    return text


def _without_trailing_spaces(text: str) -> str:
    lines = text.split("\n")
    return "\n".join(line[:-1].rstrip(" \t") + "\r" if line.endswith("\r") else line.rstrip(" \t") for line in lines)


def _few_blank_lines(text: str) -> str:
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text


_STEPS = {
    "nfc": _composed,
    "control-characters": _without_control,
    "line-ends": _line_ends,
    "trailing-spaces": _without_trailing_spaces,
    "blank-lines": _few_blank_lines,
}
