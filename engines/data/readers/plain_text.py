"""The text shape: a column `text` in which every token is trained on."""

from __future__ import annotations

from typing import Any

from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import TextRow
from engines.data.readers.turns import text_of, word_of

KEYS = ("text", "path")
"""`path` names a document of a text stage; it is the row's id where there is no other."""


def text_row(value: dict[str, Any], _reading: Reading) -> TextRow:
    """The row of a value.

    Raises:
        BadRowError: the text is something else.
    """
    group, category, name = marks_of(value)
    return TextRow(text_of(value, "text"), group, category, name or word_of(value.get("path"), "path"))
