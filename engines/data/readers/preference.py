"""The preference shape: `chosen` and `rejected` beside a prompt, as TRL and LLaMA-Factory have them.

The prompt is a text or turns (`prompt`), an Alpaca question (`instruction`, `input`), ShareGPT turns
(`conversations`), or the turns that both answers begin with.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from engines.data.readers.alpaca import question_of
from engines.data.readers.bad_row import BadRowError
from engines.data.readers.prompt_completion import prompt_of, side_of
from engines.data.readers.reading import Reading, marks_of
from engines.data.readers.row import Message, PreferenceRow
from engines.data.readers.turns import after_system, tools_of

KEYS = ("prompt", "chosen", "rejected", "instruction", "input", "history", "conversations", "system", "tools")


def preference_row(value: dict[str, Any], reading: Reading) -> PreferenceRow:
    """The row of a value.

    Raises:
        BadRowError: it has no prompt, or a part is neither text nor turns.
    """
    chosen = side_of(value["chosen"], "chosen", "assistant", reading)
    rejected = side_of(value["rejected"], "rejected", "assistant", reading)
    prompt = _prompt(value, reading)
    if chosen and rejected and "assistant" not in (chosen[0].role, rejected[0].role):  # both are whole conversations
        pairs = zip(chosen[:-1], rejected[:-1], strict=False)
        prompt = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt:
        raise BadRowError("the row has no prompt", hint="give prompt, or turns in chosen and rejected")
    group, category, name = marks_of(value)
    return PreferenceRow(prompt, chosen, rejected, tools_of(value.get("tools")), group, category, name)


def _prompt(value: dict[str, Any], reading: Reading) -> list[Message]:
    if value.get("prompt") is not None:
        turns = prompt_of(value["prompt"], "prompt", reading)
    elif value.get("conversations") is not None:
        turns = prompt_of(value["conversations"], "conversations", reading)
    elif value.get("instruction") is not None:
        return question_of(value)
    else:
        return []
    return after_system(value, turns)
