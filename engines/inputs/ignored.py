"""The rules of .gitignore and .gitattributes files, without git: the tree belongs to a stranger, whose git settings
could start programs.

The forms are those of gitignore(5) and gitattributes(5). Patterns are compared piece by piece, and with a bounded
number of wildcards, so that no pattern takes long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

MAX_RULES = 1000
"""Rules of one file; more are not read."""
_MAX_WILDCARDS = 12
_TRUE = ("true", "set")


@dataclass(frozen=True)
class Rule:
    """One line of a .gitignore.

    Attributes:
        folder: the folder of the file, relative to the source, with a final `/`; empty for the top.
        parts: the pattern's pieces between slashes; None for `**`.
        anchored: the pattern applies to paths from `folder`, not to names at any depth.
        folders_only: it applies only to folders.
        negated: a match includes again what an earlier rule left out.
    """

    folder: str
    parts: tuple[re.Pattern[str] | None, ...]
    anchored: bool
    folders_only: bool = False
    negated: bool = False

    def matches(self, inside: str, *, is_folder: bool) -> bool:
        """Whether the rule applies to a path inside the source."""
        if not inside.startswith(self.folder) or (self.folders_only and not is_folder):
            return False
        pieces = inside.removeprefix(self.folder).split("/")
        if not self.anchored:
            return self.parts[0] is None or self.parts[0].match(pieces[-1]) is not None
        return _matches(pieces, self.parts)


def _matches(pieces: Sequence[str], parts: Sequence[re.Pattern[str] | None]) -> bool:
    """Whether the pieces of a path match those of a pattern; None stands for any number of pieces."""
    reached = {0}
    for part in parts:
        if part is None:
            reached = set(range(min(reached), len(pieces) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(pieces) and part.match(pieces[at])}
    return len(pieces) in reached


def ignore_rules(text: str, folder: str) -> list[Rule]:
    """The rules of a .gitignore in `folder` (relative to the source, with a final `/`; empty for the top)."""
    rules = []
    for line in text.splitlines()[:MAX_RULES]:
        pattern = line if line.endswith("\\ ") else line.rstrip()
        if not pattern or pattern.startswith("#"):
            continue
        negated = pattern.startswith("!")
        rule = _rule(pattern[negated:].removeprefix("\\"), folder, negated=negated)
        if rule is not None:
            rules.append(rule)
    return rules


def _rule(pattern: str, folder: str, *, negated: bool = False) -> Rule | None:
    if not pattern.strip("/") or sum(map(pattern.count, "*?[")) > _MAX_WILDCARDS:
        return None
    stripped = pattern.rstrip("/")
    anchored = "/" in stripped
    parts = [part for part in stripped.split("/") if part]
    if parts[-1] == "**":
        parts.append("*")
    compiled = tuple(None if part == "**" else re.compile(translate(part)) for part in parts)
    return Rule(folder, compiled, anchored, folders_only=pattern.endswith("/"), negated=negated)


def is_ignored(rules: Sequence[Rule], inside: str, *, is_folder: bool) -> bool:
    """Whether the last rule that matches a path leaves it out."""
    for rule in reversed(rules):
        if rule.matches(inside, is_folder=is_folder):
            return not rule.negated
    return False


@dataclass(frozen=True)
class Mark:
    """A line of a .gitattributes about generated or vendored files: the name of `linguist-*`, and whether it is set."""

    rule: Rule
    name: str
    is_set: bool


_ATTRIBUTE = re.compile(r"^(-|!)?linguist-(generated|vendored)(?:=([a-z]{1,8}))?$")


def marks_of(text: str, folder: str) -> list[Mark]:
    """The marks of a .gitattributes in `folder` (relative to the source, with a final `/`; empty for the top)."""
    marks = []
    for line in text.splitlines()[:MAX_RULES]:
        pattern, *attributes = line.split()[:20] or [""]
        rule = None if pattern.startswith("#") else _rule(pattern, folder)
        for found in filter(None, map(_ATTRIBUTE.match, attributes)):
            if rule is not None:
                is_set = found[1] is None and (found[3] or "true") in _TRUE
                marks.append(Mark(rule, found[2], is_set))
    return marks


def has_mark(marks: Sequence[Mark], inside: str, name: str) -> bool | None:
    """Whether the last mark of this name that matches a file is set; None without one."""
    for mark in reversed(marks):
        if mark.name == name and mark.rule.matches(inside, is_folder=False):
            return mark.is_set
    return None
