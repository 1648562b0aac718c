"""The messages shape: a list of turns with `role` and `content`, as in OpenAI's and TRL's conversational data."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import MessageRow
from engines.data.readers.turns import after_system, tools_of, turns_of, word_of

KEYS = ("messages", "system", "tools", "group", "category", "question", "id")
_DECODER = msgspec.json.Decoder(MessageRow)
_PLAIN_ROLES = frozenset({"system", "user", "assistant"})


def message_row(value: dict[str, Any], reading: Reading) -> MessageRow:
    """The row of a value.

    Raises:
        BadRowError: the value has no list of messages, or one of its turns is malformed.
    """
    turns = turns_of(value["messages"], "messages", reading.ignored)
    if len(value) == 1:
        return MessageRow(turns)
    turns = after_system(value, turns)
    group, category, name = marks_of(value)
    if not category:  # the name of the key in folders that earlier versions prepared
        category = word_of(value.get("question"), "question")
    return MessageRow(turns, tools_of(value.get("tools")), group, category, name)


def quick_row(line: bytes) -> MessageRow | None:
    """The row of a line of JSON whose turns have a role and a content and nothing else; None for any other line.

    It is several times faster than `message_row`. The decoder takes the last of two equal keys in silence, so the
    quotation marks of the line are counted: a key more than the row has would be two more of them.
    """
    if b"\\\\" in line:  # an escaped backslash before a quotation mark could hide it
        return None
    try:
        row = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    strings = 1 + 2 * (bool(row.group) + bool(row.category) + bool(row.id))
    for turn in row.messages:
        if turn.role not in _PLAIN_ROLES or not turn.content:
            return None
        strings += 4
    return row if line.count(b'"') - line.count(b'\\"') == 2 * strings else None
