"""The ShareGPT shape: `conversations`, a list of turns with `from` and `value`, and perhaps `system` and `tools`."""

from __future__ import annotations

from typing import Any

from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import MessageRow
from engines.data.readers.turns import after_system, tools_of, turns_of

KEYS = ("conversations", "system", "tools")


def sharegpt_row(value: dict[str, Any], reading: Reading) -> MessageRow:
    """The row of a value.

    Raises:
        BadRowError: the value has no list of conversations, or one of its turns is malformed.
    """
    turns = after_system(value, turns_of(value["conversations"], "conversations", reading.ignored))
    group, category, name = marks_of(value)
    return MessageRow(turns, tools_of(value.get("tools")), group, category, name)
