"""What every shape needs to convert a value: the recipe's choices, and the parts that all rows have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engines.data.readers.bad_row import BadRowError
from engines.data.readers.turns import IGNORE_HINT, word_of
from recipes.problems import printable

COMMON = frozenset({"group", "category", "id"})
"""Keys that every shape understands."""
_MEANINGFUL = {
    "images": "pictures", "image": "pictures", "videos": "videos", "video": "videos", "audios": "sound",
    "audio": "sound", "chat_template_kwargs": "arguments of the chat template", "kto_tag": "a judgement of KTO",
    "functions": "functions in an old form (write tools)", "function_call": "a call in an old form (write tool_calls)",
    "completion_mask": "what is learnt", "assistant_masks": "what is learnt", "labels": "what is learnt",
    "input_ids": "tokens", "margin": "a margin of a preference",
}  # fmt: skip
"""Keys of a row that change what should be learnt, and that no stage of Cockpit follows."""


@dataclass(frozen=True)
class Reading:
    """The recipe's choices.

    Attributes:
        columns: paths of the parts of a row, by the part's name.
        ignored: keys that are left out on purpose.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


def marks_of(value: Mapping[str, Any]) -> tuple[str, str, str]:
    """Group, category and id of a row.

    Raises:
        BadRowError: one of them is neither text nor a whole number.
    """
    return (
        word_of(value.get("group"), "group"),
        word_of(value.get("category"), "category"),
        word_of(value.get("id"), "id"),
    )


def refuse_meaningful(value: Mapping[str, Any], keys: frozenset[str]) -> None:
    """Refuse a row with a key, beside those of its shape, that would change what is learnt.

    Raises:
        BadRowError: with the key's name.
    """
    for key in value.keys() - keys:
        if key in _MEANINGFUL and value[key] not in (None, "", [], {}):
            name = printable(key, 60)
            raise BadRowError(
                f"{name} — the row has {_MEANINGFUL[key]}, which Cockpit does not use",
                f"a row has the key {name}",
                IGNORE_HINT.format(key=name),
            )


def at_path(value: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or of a key that is written so; None if there is nothing."""
    if path in value:
        return value[path]
    here: Any = value
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return None
        here = here[part]
    return here
