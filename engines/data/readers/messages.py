"""The messages shape: a list of turns with `role` and `content`, as in OpenAI's and TRL's conversational data."""

from __future__ import annotations

from typing import Any

from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import MessageRow
from engines.data.readers.turns import tools_of, turns_of, word_of

KEYS = ("messages", "tools", "group", "category", "question", "id")


def message_row(value: dict[str, Any], reading: Reading) -> MessageRow:
    """The row of a value.

    Raises:
        BadRowError: the value has no list of messages, or one of its turns is malformed.
    """
    turns = turns_of(value["messages"], "messages", reading.ignored)
    if len(value) == 1:
        return MessageRow(turns)
    group, category, name = marks_of(value)
    if not category:  # the name of the key in folders that earlier versions prepared
        category = word_of(value.get("question"), "question")
    return MessageRow(turns, tools_of(value.get("tools")), group, category, name)
