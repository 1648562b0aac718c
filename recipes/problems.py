"""Errors for the operator: what is wrong, where, and what is allowed; never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.spelling import spell

SHOWN_CHARACTERS = 80
SHOWN_PROBLEMS = 50


class OperatorError(Exception):
    """An error that the operator can fix: two lines on stderr and exit code 2.

    Attributes:
        message: what is wrong.
        hint: what to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Problem:
    """One error in a recipe or in a `--set`.

    `path` is the file, or the text of the `--set …` (`line` is then 0). `got`, `allowed` and `hint` are printable and
    may be empty. `column` is set only if the file cannot be parsed.
    """

    path: Path | str
    line: int
    key: str
    message: str
    got: str = ""
    allowed: str = ""
    hint: str = ""
    column: int = 0

    @property
    def where(self) -> str:
        """`file:line`, `file:line:column`, or the override."""
        spot = printable(str(self.path), limit=400)
        if self.line:
            spot += f":{self.line}"
        return f"{spot}:{self.column}" if self.column else spot

    def __str__(self) -> str:
        return f"{self.where}  {self.words}"

    @property
    def words(self) -> str:
        """The problem without its place, for recipes that are not in a file."""
        what = f"{printable(self.key)} — {self.message}" if self.key else self.message
        parts = [what]
        if self.got:
            parts.append(f"got {self.got}")
        if self.allowed:
            parts.append(f"allowed {self.allowed}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(parts)


class RecipeError(OperatorError):
    """A recipe with errors; `problems` lists all of them, in the order of the file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = sorted(
            dict.fromkeys(problems), key=lambda problem: (problem.line == 0, problem.line, problem.key)
        )
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"… and {len(self.problems) - SHOWN_PROBLEMS} more problems")
        super().__init__("\n".join(lines))


def printable(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Text of unknown origin on one line: control and formatting characters escaped, at most `limit` characters."""
    cut = text[:limit]
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in cut)
    return safe + "…" if len(text) > limit else safe


def shown(value: Any) -> str:
    """A value as TOML, shortened."""
    if isinstance(value, str):
        return f'"{printable(value)}"'
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a whole number with more than 30 digits"
    if isinstance(value, (bool, int, float)):
        return spell(value)
    if isinstance(value, list):
        inner = ", ".join(shown(item) for item in value[:4])
        return printable(f"[{inner}{', …' if len(value) > 4 else ''}]")
    if isinstance(value, dict):
        inner = ", ".join(f"{printable(str(key), 30)} = …" for key in list(value)[:4])
        return printable("{" + inner + (", …" if len(value) > 4 else "") + "}")
    return printable(str(value))


def kind_of_value(value: Any) -> str:
    """The name of a value's TOML type, with its article."""
    words = {"bool": "a boolean", "int": "a whole number", "float": "a number", "str": "a string"}
    more = {"list": "a list", "dict": "a table", "datetime": "a date and time", "date": "a date", "time": "a time"}
    return (words | more).get(type(value).__name__, "a value")


def closest(word: str, options: Iterable[str]) -> str:
    """`did you mean …` for a word that is not among the options, or an empty text.

    It finds similar spellings, initials (`lr`) and parts of a longer name (`epochs`).
    """
    if not 0 < len(word) <= 60:
        return ""
    names = list(dict.fromkeys(options))
    lowered = word.lower().replace("-", "_")
    found = [name for name in names if "_" in name and "".join(part[:1] for part in name.split("_")) == lowered]
    found = found or difflib.get_close_matches(word, names, n=1, cutoff=0.62)
    found = found or [name for name in names if name.lower().replace("-", "_") == lowered]
    found = found or [name for name in names if len(lowered) > 2 and lowered in name.split("_")]
    found = found or [name for name in names if len(lowered) > 3 and lowered in name]
    if not found and len(lowered) > 3:
        found = [name for name in names if set(name.split("_")) & set(lowered.split("_"))][:1]
    return "did you mean " + " or ".join(printable(name) for name in found[:2]) + "?" if found else ""


def either(options: Iterable[Any], limit: int = 12) -> str:
    """Options as text for `allowed`, separated by commas."""
    names = [shown(option) for option in options]
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
