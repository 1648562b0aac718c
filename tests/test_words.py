"""The style guide's refused phrases stand in nothing that a user reads: messages, docstrings, recipe comments and
pages.

The phrases are read from the last table of STYLE.md, so the page and the test cannot disagree.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cockpit", "engines", "exporters", "recipes")


@dataclass(frozen=True)
class Sentence:
    """Text that a user may read, and the line it begins in."""

    path: Path
    line: int
    text: str


@dataclass(frozen=True)
class Finding:
    """A refused phrase in a sentence."""

    sentence: Sentence
    phrase: str
    found: str

    def __str__(self) -> str:
        return f"{self.sentence.path}:{self.sentence.line}: {self.found!r} (refused: {self.phrase})"


def refused_phrases() -> dict[str, re.Pattern[str]]:
    """Every phrase of the style guide's last table, with the pattern that finds it."""
    table = (ROOT / "STYLE.md").read_text().partition("## Refused phrases")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {phrase: _pattern(phrase) for cell in cells for phrase in re.findall(r"`([^`]+)`", cell)}


def _pattern(phrase: str) -> re.Pattern[str]:
    """Whole words with any white space between; `…` is up to six words; only the first letter's case is free."""
    first, rest = phrase[0], phrase[1:]
    parts = [re.escape(word) for word in rest.split(" ")]
    body = r"\s+".join(parts).replace(r"\s+…\s+", r"\s+(?:[^\s.;:]+\s+){0,6}?").replace("…", r"\S+")
    return re.compile(rf"(?<![\w-])[{first.lower()}{first.upper()}]{body}(?![\w-])")


def strings_of(source: str) -> Iterator[tuple[int, str]]:
    """Every string of a module with its line: literals, docstrings, and f-strings with a blank for each value."""
    yield from _strings(ast.parse(source))


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
        yield node.lineno, "".join(parts)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from _strings(part.value)
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def sentences() -> Iterator[Sentence]:
    """Everything that an operator can see."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            here = path.relative_to(ROOT)
            yield from (Sentence(here, line, _without_code(text)) for line, text in strings_of(path.read_text()))
        for path in sorted((ROOT / package).rglob("*.toml")):
            here = path.relative_to(ROOT)
            lines = path.read_text().splitlines()
            yield from (Sentence(here, line, text) for line, text in enumerate(lines, 1))
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]):
        yield Sentence(path.relative_to(ROOT), 1, _without_code(path.read_text()))


def _without_code(text: str) -> str:
    """Text without what stands in backticks on one line: names, commands, and the phrases that STYLE.md lists."""
    return re.sub(r"`[^`\n]+`", "``", text)


def findings() -> list[Finding]:
    """Every refused phrase in the tree."""
    phrases = refused_phrases()
    found = []
    for sentence in sentences():
        for phrase, pattern in phrases.items():
            for match in pattern.finditer(sentence.text):
                line = sentence.line + sentence.text.count("\n", 0, match.start())
                around = " ".join(sentence.text[max(0, match.start() - 30) : match.end() + 30].split())
                found.append(Finding(Sentence(sentence.path, line, sentence.text), phrase, around))
    return found


def test_no_sentence_has_a_refused_phrase() -> None:
    found = findings()
    assert not found, "STYLE.md has the replacements:\n" + "\n".join(map(str, found))


@pytest.mark.parametrize(
    "text",
    [
        'X = "the run goes on"',
        'X = f"{name} goes on from step {step}"',
        'X = "a" if y else f"{x} tells {z or \'nobody\'}"',
        '"""Held against its base."""',
        "def f():\n    '''Holds the file\n    against its source.'''",
        'X = ("there is " "none to come: the value is none")',
    ],
)
def test_a_refused_phrase_is_found_in_every_kind_of_string(text: str) -> None:
    strings = [string for _, string in strings_of(text)]
    assert any(pattern.search(string) for pattern in refused_phrases().values() for string in strings)


@pytest.mark.parametrize("text", ["`goes on` in code", "foretells", "None when there is None", "a tell-tale", "untold"])
def test_code_and_longer_words_are_not_refused(text: str) -> None:
    assert not any(pattern.search(_without_code(text)) for pattern in refused_phrases().values())


def test_every_refused_phrase_has_a_replacement() -> None:
    table = (ROOT / "STYLE.md").read_text().partition("## Refused phrases")[2]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    assert all(len(row) == 4 and row[2].strip() for row in rows)
