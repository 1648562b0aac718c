"""A configuration file as entries: every top-level key with its value and its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cockpit.importing.script import arguments_of, code_of
from cockpit.importing.yaml_text import Document, KeyPath, read_json_document, read_yaml
from engines.files import read_regular_text
from recipes.problems import OperatorError, printable

MAX_BYTES = 1024 * 1024
"""Several times the size of the largest registry of data sets."""
MAX_NOTEBOOK_BYTES = 16 * 1024 * 1024
"""A notebook also has what its cells printed."""
SUFFIXES = (".yaml", ".yml", ".json", ".py", ".ipynb")


@dataclass(frozen=True)
class Entry:
    """One key of a configuration; `line` is 0 if it is not known."""

    key: str
    value: Any
    line: int


@dataclass(frozen=True)
class Config:
    """A configuration.

    Attributes:
        path: its file.
        entries: the top-level keys in the file's order.
        lines: the line of every key, nested ones too.
        repeated: keys that stand more than once; the last one counts.
        calls: the classes and functions whose arguments a script gives.
    """

    path: Path
    entries: Mapping[str, Entry]
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    repeated: tuple[tuple[str, int, int], ...] = ()
    calls: frozenset[str] = frozenset()

    def line(self, *path: str | int) -> int:
        """The line of a key, or of the nearest one above it; 0 if none is known."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 0


def read_config(path: Path) -> Config:
    """Read a configuration: YAML, JSON, or a Python script or notebook, of which literals are read, not executed.

    Raises:
        OperatorError: the file cannot be read, or is not a mapping.
    """
    text = _text(path)
    if path.suffix in (".py", ".ipynb"):
        found = arguments_of(code_of(text, path) if path.suffix == ".ipynb" else text, path)
        entries = {key: Entry(key, value, line) for key, (value, line) in found.values.items()}
        repeated = tuple((key, first, last) for key, first, last in found.repeated)
        return Config(path, entries, {(key,): entry.line for key, entry in entries.items()}, repeated, found.calls)
    document: Document = read_json_document(text, path) if path.suffix == ".json" else read_yaml(text, path)
    if not isinstance(document.value, dict) or not document.value:
        raise OperatorError(
            f"{printable(str(path), 400)}: not a configuration: the file has no keys at its top level",
            "give the YAML or JSON file of LLaMA-Factory, Axolotl, TRL or Unsloth, or a Python script with their calls",
        )
    lines = document.lines
    entries = {key: Entry(key, value, lines.get((key,), 0)) for key, value in document.value.items()}
    repeated = tuple((".".join(map(str, path)), first, last) for path, first, last in document.repeated)
    return Config(path, entries, lines, repeated)


def _text(path: Path) -> str:
    shown = printable(str(path), 400)
    if path.suffix not in SUFFIXES:
        raise OperatorError(f"CONFIG — got {shown}; allowed: a file that ends in {', '.join(SUFFIXES)}")
    try:
        limit = MAX_NOTEBOOK_BYTES if path.suffix == ".ipynb" else MAX_BYTES
        return read_regular_text(path, limit).removeprefix("\ufeff")
    except OSError as error:
        raise OperatorError(f"{shown} cannot be read: {printable(error.strerror or str(error), 200)}") from None
    except ValueError:
        raise OperatorError(f"{shown} cannot be read: it is not UTF-8 text") from None
