"""The prompt-completion shape of TRL: each of the two is a text, or a list of turns. Only the completion is scored."""

from __future__ import annotations

from typing import Any

import msgspec

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import Message, MessageRow
from engines.data.readers.turns import IGNORE_HINT, after_system, checked, tools_of, turns_of, wrong_type

KEYS = ("prompt", "completion", "system", "tools")


def prompt_completion_row(value: dict[str, Any], reading: Reading) -> MessageRow:
    """The row of a value.

    Raises:
        BadRowError: a part is neither text nor turns, or the row carries KTO's judgement of its completion.
    """
    if isinstance(value.get("label"), bool):
        what = "label — the row has a judgement of KTO, which Cockpit does not use"
        raise BadRowError(what, "a row has the key label", IGNORE_HINT.format(key="label"))
    before = after_system(value, prompt_of(value["prompt"], "prompt", reading))
    after = side_of(value["completion"], "completion", "assistant", reading)
    group, category, name = marks_of(value)
    return MessageRow([*before, *after], tools_of(value.get("tools")), group, category, name)


def prompt_of(value: Any, name: str, reading: Reading) -> list[Message]:
    """The turns of a prompt; the assistant's turns in it are context, and are not scored."""
    turns = side_of(value, name, "user", reading)
    return [msgspec.structs.replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in turns]


def side_of(value: Any, name: str, role: str, reading: Reading) -> list[Message]:
    """A text as one turn of a role, or turns.

    Raises:
        BadRowError: it is neither.
    """
    if isinstance(value, str):
        return [Message(role, checked(value, name))]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise wrong_type(name, value, "text, or a list of turns")
    return turns_of(value, name, reading.ignored)
