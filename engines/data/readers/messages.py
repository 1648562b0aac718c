"""The messages shape: a list of turns with `role` and `content`, as in OpenAI's and TRL's conversational data."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.data.readers.row import MessageRow


def message_row(value: Any) -> MessageRow:
    """The row of a value.

    Raises:
        ValueError: the value has no list of messages, or one of its turns is malformed.
    """
    return msgspec.convert(value, MessageRow)
