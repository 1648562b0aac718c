"""Definitions of a source file in any of the languages that Cockpit reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from engines.data.code.c_family import c_definitions, dialect_of_header
from engines.data.code.definition import Definition
from engines.data.code.go import go_definitions
from engines.data.code.java import java_definitions
from engines.data.code.javascript import script_definitions
from engines.data.code.python_source import module_name, python_definitions
from engines.data.code.rust import rust_definitions
from engines.data.code.syntax import GRAMMARS, is_installed
from recipes.problems import OperatorError
from recipes.stages.code_fields import SUFFIXES


@dataclass
class ParseCounts:
    """What the parsers found, by language: files, those with a part that the parser could not read, definitions."""

    files: Counter[str] = field(default_factory=Counter)
    with_errors: Counter[str] = field(default_factory=Counter)
    definitions: Counter[str] = field(default_factory=Counter)

    def as_table(self) -> dict[str, dict[str, int]]:
        """The counts for metadata, by language."""
        return {
            language: {
                "files": self.files[language],
                "files_with_errors": self.with_errors[language],
                "definitions": self.definitions[language],
            }
            for language in sorted(self.files)
        }


def language_of(path: str, text: str) -> str:
    """The language of a file, by its suffix and, of a `.h` file, by its text; empty for any other file."""
    language = SUFFIXES.get(PurePosixPath(path).suffix.lower(), "")
    return dialect_of_header(text) if language == "c" and path.endswith(".h") else language


def definitions_of(path: str, text: str, language: str, dropped: Counter[str], counts: ParseCounts) -> list[Definition]:
    """The definitions of a file in file order.

    A part that tree-sitter's parser cannot read is counted and costs only its own definitions; a Python file that is
    not Python gives none.

    Args:
        path: the file, relative to the source; names of modules come from it.
        text: its text.
        language: its language.
        dropped: counts files that give nothing, by reason.
        counts: gets what was found.
    """
    if language == "python" and not module_name(path):
        dropped["no_module_name"] += 1
        return []
    try:
        found, has_errors = _READERS[language](path, text, language)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        dropped["not_parsed"] += 1
        return []
    counts.files[language] += 1
    counts.with_errors[language] += has_errors
    counts.definitions[language] += len(found)
    return found


def _script(path: str, text: str, language: str) -> tuple[list[Definition], bool]:
    return script_definitions(path, text, "tsx" if path.lower().endswith(".tsx") else language)


_READERS: Mapping[str, Callable[[str, str, str], tuple[list[Definition], bool]]] = {
    "python": lambda path, text, _language: (python_definitions(path, text), False),
    "c": c_definitions,
    "cpp": c_definitions,
    "javascript": _script,
    "typescript": _script,
    "go": lambda path, text, _language: go_definitions(path, text),
    "rust": lambda path, text, _language: rust_definitions(path, text),
    "java": lambda path, text, _language: java_definitions(path, text),
}
"""Of each language: the definitions of a file, from its path, its text and the language, and whether parts were
unreadable."""


def require_parsers(languages: Iterable[str], chosen: Sequence[str]) -> None:
    """Stop before work is done when a language of the sources has no parser here.

    Args:
        languages: the languages of the files.
        chosen: the languages of the recipe.

    Raises:
        OperatorError: a parser is not installed.
    """
    missing = sorted({one for one in languages if one in GRAMMARS and not is_installed(one)})
    if missing:
        others = ", ".join(f'"{one}"' for one in chosen if one not in missing)
        raise OperatorError(
            f"no parser is installed for {', '.join(missing)}",
            "install it: pip install 'training-cockpit[code]'"
            + (f"; or leave these files out: languages = [{others}]" if others else ""),
        )
