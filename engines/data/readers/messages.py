"""The messages shape: a list of turns with `role` and `content`, as OpenAI's and TRL's conversational data have it."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.data.readers.row import MessageRow


def message_row(value: Any) -> MessageRow:
    """The row that a value holds.

    Raises:
        ValueError: the value has no list of messages, or one of its turns is not right.
    """
    return msgspec.convert(value, MessageRow)
