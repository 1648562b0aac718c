"""Patterns of layers' names: regular expressions that may come from any source, and so are simple."""

from __future__ import annotations

import re

from recipes.problems import shown

_NAME = re.compile(r"[A-Za-z0-9_.-]*")
"""The characters of a layer's name; an entry of `target_modules` with others is a regular expression."""
_CLASS = r"\[[A-Za-z0-9_^-]+\]"
_SIMPLE = re.compile(
    rf"(?:[A-Za-z0-9_^$|.-]|\\[.dwDW-]|{_CLASS}|[*+?]|\((?:\?:)?(?:[A-Za-z0-9_|]|\\\.|{_CLASS})+\)\??)*"
)
MOST_GROUPS = 4
MOST_REPEATS, MOST_REPEATS_OF_TARGETS = 2, 3
"""In a pattern of layers, which may come from any source: with few repeated characters, and groups of plain
alternatives, matching takes at most about a low power of the name's length."""


def is_pattern(entry: str) -> bool:
    """Whether an entry of `target_modules` is a regular expression and not a name."""
    return _NAME.fullmatch(entry) is None


def pattern_problem(text: str, repeats: int = MOST_REPEATS) -> str:
    """What is wrong with a pattern of layers; empty if nothing is."""
    limits = f"names, at most {MOST_GROUPS} groups of alternatives, and at most {repeats} of *, + and ?"
    found = len(re.findall(r"[*+?]", text.replace("(?:", "(")))
    if not _SIMPLE.fullmatch(text) or found > repeats or text.count("(") > MOST_GROUPS:
        return f"got {shown(text)}; allowed: {limits}; other regular expressions can compute for hours"
    try:
        re.compile(text)
    except re.error as error:
        return f"not a regular expression: {error}; got {shown(text)}; allowed: {limits}"
    return ""


def require_pattern(field: str, text: str, repeats: int = MOST_REPEATS) -> None:
    """Refuse a pattern that cannot be used.

    Raises:
        ValueError: with the field.
    """
    problem = pattern_problem(text, repeats)
    if problem:
        raise ValueError(f"{field} — {problem}")
