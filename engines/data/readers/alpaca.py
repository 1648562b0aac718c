"""The Alpaca shape: `instruction`, `output`, and perhaps `input`, `system` and `history`.

The user's turn is the instruction and, on a line of its own, the input, as LLaMA-Factory reads it. A null or empty
input is no input.
"""

from __future__ import annotations

from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import Message, MessageRow
from engines.data.readers.turns import checked, text_of, tools_of, wrong_type

KEYS = ("instruction", "input", "output", "system", "history", "tools")


def alpaca_row(value: dict[str, Any], _reading: Reading) -> MessageRow:
    """The row of a value.

    Raises:
        BadRowError: a part is not text, or the history is not a list of pairs.
    """
    group, category, name = marks_of(value)
    turns = [*question_of(value), Message("assistant", text_of(value, "output"))]
    return MessageRow(turns, tools_of(value.get("tools")), group, category, name)


def question_of(value: dict[str, Any]) -> list[Message]:
    """The turns before the answer: system, history, and the instruction with its input."""
    turns = [Message("system", system)] if (system := text_of(value, "system")) else []
    history = value.get("history") or []
    if not isinstance(history, list):
        raise wrong_type("history", history, "a list of pairs of texts")
    for place, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRowError(f"history[{place}] — not a pair of texts", "history has the wrong type")
        turns += [
            Message("user", checked(pair[0], f"history[{place}]")),
            Message("assistant", checked(pair[1], f"history[{place}]")),
        ]
    parts = [part for part in (text_of(value, "instruction"), text_of(value, "input")) if part]
    return [*turns, Message("user", "\n".join(parts))]
