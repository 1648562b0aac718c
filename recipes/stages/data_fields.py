"""The fields of a stage that reads conversations: how its data is read, and what happens to a bad row."""

from __future__ import annotations

import codecs
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator

from recipes.problems import closest, printable
from recipes.setting import setting
from recipes.stages.fields import StageFields

DataFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "chatml", "text", "preference"]
"""The shape of a row; "auto" takes the one whose keys the first row of each file has."""
ROW_COLUMNS = (
    "user", "assistant", "system", "messages", "conversations", "instruction", "input", "output", "history", "prompt",
    "completion", "chosen", "rejected", "text", "tools", "group", "category", "id",
)  # fmt: skip
"""The names that `columns` may give a path."""
_WHOLES = ("user", "messages", "conversations", "instruction", "prompt", "text")
"""Names of which a shape has one."""
DATASET = "dataset"
"""A word of `accepts`: a dataset of a hub, by its id."""

READ_METRICS = ("skipped_rows",)
"""The counts of reading that a stage reports as metrics."""

_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([^\s=!<>\"]+)\s*(=|!=|<=|>=|<|>)\s*(.+?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """A condition on a row: the value at a path compared with a constant."""

    path: str
    comparison: str
    value: str | float | bool | None

    def holds(self, found: Any) -> bool:
        """Whether a value satisfies the condition; values of two types are unequal and have no order."""
        comparable = self._kind(found) is not None and self._kind(found) is self._kind(self.value)
        if self.comparison in ("=", "!="):
            return (comparable and found == self.value) is (self.comparison == "=")
        return comparable and self._kind(found) in (str, float) and _COMPARED[self.comparison](found, self.value)

    @staticmethod
    def _kind(value: Any) -> type | None:
        if isinstance(value, bool) or value is None:
            return type(value)
        if isinstance(value, int | float):
            return float
        return str if isinstance(value, str) else None


def condition_of(text: str) -> Condition:
    """The condition that a text spells: a path, one of = != < <= > >=, and a JSON value that is no list or object.

    Raises:
        ValueError: it spells none.
    """
    found = _CONDITION.fullmatch(text)
    try:
        value = json.loads(found[3]) if found else []
    except (ValueError, RecursionError):
        value = []
    if found is None or isinstance(value, list | dict) or not all(found[1].split(".")):
        raise ValueError(
            f"where — not a condition; got {printable(text, 80)!r}; allowed: a path, one of {' '.join(_COMPARED)}, and"
            ' a number, true, false, null or a text in quotes, such as task.score >= 3 or split = "train"'
        )
    return Condition(found[1], found[2], value)


class ReadFields(StageFields):
    """How rows are read, whatever their shape."""

    columns: dict[str, str] = setting(
        default_factory=dict,
        section="Data",
        at_resume="input",
        help="Where a row has its parts, as dotted paths: user and assistant (and system) make a conversation of any"
        " object; other names, such as messages, instruction or text, are those that a known shape has.",
    )
    ignore_keys: list[str] = setting(
        default_factory=list,
        section="Data",
        at_resume="input",
        advanced=True,
        help="Keys of rows and turns that are left out on purpose; other keys that carry meaning are refused.",
    )
    where: list[str] = setting(
        default_factory=list,
        section="Data",
        at_resume="input",
        advanced=True,
        help="Conditions that a row satisfies to be used, such as execution.success = true: a path, one of"
        " = != < <= > >=, and a JSON value; other rows are left out and counted.",
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error",
        section="Data",
        at_resume="input",
        help="What a row does that cannot be used: error ends the stage and names it, skip leaves it out and counts"
        " it.",
    )
    encoding: str | None = setting(
        None,
        section="Data",
        at_resume="input",
        advanced=True,
        min_length=1,
        help="Encoding of the data's text files, such as latin-1; by default UTF-8, or what a byte-order mark says.",
    )

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, value: dict[str, str]) -> dict[str, str]:
        unknown = [name for name in value if name not in ROW_COLUMNS]
        if unknown:
            near = closest(unknown[0], ROW_COLUMNS)
            raise ValueError(
                f"columns — no part of a row has this name; got {printable(', '.join(unknown), 200)};"
                f" allowed: {', '.join(ROW_COLUMNS)}" + (f"; {near}" if near else "")
            )
        empty = [name for name, path in value.items() if not all(path.split("."))]
        if empty:
            raise ValueError(
                f"columns — the path of {empty[0]} has an empty part; got {printable(value[empty[0]], 80)!r};"
                " allowed: keys with dots between them, such as task.description"
            )
        if ("user" in value) != ("assistant" in value):
            raise ValueError(
                f"columns — user and assistant belong together; got {', '.join(value)}; allowed: both, or neither"
            )
        wholes = [name for name in _WHOLES if name in value]
        if len(wholes) > 1 and "chosen" not in value:
            raise ValueError(
                f"columns — {' and '.join(wholes)} cannot be combined; got {', '.join(value)};"
                f" allowed: the parts of one shape, which have one of {', '.join(_WHOLES)}"
            )
        return value

    @field_validator("where")
    @classmethod
    def _known_conditions(cls, value: list[str]) -> list[str]:
        for text in value:
            condition_of(text)
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return known_encoding(value)


class DataFields(ReadFields):
    """How the rows of a stage are read that takes conversations as they are."""

    format: DataFormat = setting(
        "auto",
        section="Data",
        at_resume="input",
        help="Shape of a row; auto finds it by the keys of each file's first row.",
    )


def known_encoding(value: str | None) -> str | None:
    """The value, if Python has a text encoding of this name.

    Raises:
        ValueError: it has none.
    """
    if value is not None and not _is_text_encoding(value):
        raise ValueError(
            f"encoding — not the name of a text encoding; got {printable(value, 40)!r};"
            " allowed: a name such as utf-8, utf-16, latin-1 or cp1252"
        )
    return value


def _is_text_encoding(name: str) -> bool:
    try:
        found: Any = codecs.lookup(name)
    except (LookupError, ValueError):
        return False
    return bool(getattr(found, "_is_text_encoding", True))
