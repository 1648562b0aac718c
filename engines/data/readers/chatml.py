"""The ChatML shape: a column `text` with whole conversations between `<|im_start|>` and `<|im_end|>`.

The marks become the turns of a row, so that the model's own chat template writes them as its own control tokens.
"""

from __future__ import annotations

import re
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import Message, MessageRow
from engines.data.readers.turns import ROLE_NAMES, text_of
from recipes.problems import printable

KEYS = ("text",)
START, END = "<|im_start|>", "<|im_end|>"
_TURN = re.compile(re.escape(START) + r"([^\n<]{0,40})\n")


def is_chatml(value: dict[str, Any]) -> bool:
    """Whether the text of a row begins with a turn."""
    text = value.get("text")
    return isinstance(text, str) and text.lstrip().startswith(START)


def chatml_row(value: dict[str, Any], _reading: Reading) -> MessageRow:
    """The row of a value.

    Raises:
        BadRowError: the text has something outside of its turns, or a turn has no end.
    """
    text, at, turns = text_of(value, "text"), 0, []
    while True:
        between = text.find(START, at)
        outside = text[at:] if between < 0 else text[at:between]
        if outside.strip():
            raise BadRowError(f"text outside of a turn: {printable(outside.strip(), 60)!r}", "text outside of a turn")
        if between < 0:
            break
        head = _TURN.match(text, between)
        end = text.find(END, between)
        role = ROLE_NAMES.get(head[1].strip().lower()) if head else None
        if head is None or role is None:
            got = printable(text[between + len(START) :].partition("\n")[0], 40)
            raise BadRowError(f"role — got {got!r} after {START}", "an unknown role")
        content = text[head.end() : end]
        if end < 0 or START in content:
            raise BadRowError(f"the turn of the {role} has no {END}", f"a turn has no {END}")
        turns.append(Message(role, content))
        at = end + len(END)
    group, category, name = marks_of(value)
    return MessageRow(turns, [], group, category, name)
