"""The origin of each value of a recipe: its stage, the defaults of its kind, or an override."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.problems import Problem
from recipes.stages.registry import kind_of
from recipes.toml_scan import KeyPath, TomlIndex


@dataclass
class Source:
    """The origins of one recipe's values.

    Paths are those of the file: `("stage", 2, "retry", "max_attempts")`, `("defaults", "finetune", "learning_rate")`.
    """

    path: Path | str
    index: TomlIndex
    data: dict[str, Any]
    """the file's values with overrides applied, before defaults are applied to the stages"""
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    """the text of each override, as it was typed"""

    def override(self, path: KeyPath, text: str) -> None:
        """Record that everything at `path` comes from an override; the file's lines below it are dropped."""
        lines = self.index.lines
        for old in [old for old in lines if len(old) > len(path) and old[: len(path)] == path]:
            del lines[old]
        self.overrides[path] = text

    def find(self, path: KeyPath, tag: str | None = None) -> KeyPath:
        """The path that a value at `path` was written at: its own, its default's, or the nearest enclosing table's."""
        in_stage = len(path) > 2 and path[0] == "stage" and tag is not None
        for length in range(len(path), 0, -1):
            if self._written(path[:length]):
                return path[:length]
            if in_stage and length > 2 and tag is not None:
                default: KeyPath = ("defaults", kind_of(tag), *path[2:length])
                if self._written(default):
                    return default
        return ()

    def origin(self, number: int, tag: str, field: str) -> str | None:
        """What sets a field (dotted) of a stage: `recipe`, `defaults` or `--set`; None for the schema's default."""
        parts = field.split(".")
        own: KeyPath = ("stage", number, *parts)
        laid: KeyPath = ("defaults", kind_of(tag), *parts)
        for path, origin in ((own, "recipe"), (laid, "defaults")):
            if _has(self.data, path):
                overridden = any(path[:length] in self.overrides for length in range(len(path), 0, -1))
                return "--set" if overridden else origin
        return None

    def _written(self, path: KeyPath) -> bool:
        return path in self.overrides or path in self.index.lines

    def line(self, path: KeyPath, tag: str | None = None) -> int:
        """The line (from 1) that sets the value at `path`; 0 if an override sets it."""
        found = self.find(path, tag)
        return 0 if found in self.overrides else self.index.lines.get(found, 1)

    def problem(
        self, path: KeyPath, message: str, got: str = "", allowed: str = "", hint: str = "", tag: str | None = None
    ) -> Problem:
        """A problem of the value at `path`, located where that value was written."""
        found = self.find(path, tag)
        if found[:1] == ("defaults",) and path[:1] == ("stage",):
            path = found + path[len(found) :]
        if found in self.overrides:
            return Problem(f"--set {self.overrides[found]}", 0, self.key(path), message, got, allowed, hint)
        return Problem(self.path, self.index.lines.get(found, 1), self.key(path), message, got, allowed, hint)

    def key(self, path: KeyPath) -> str:
        """A path as `--set` spells it: the stage's name, then the field."""
        parts = list(path)
        shown = ""
        if len(parts) > 1 and parts[0] == "stage" and isinstance(parts[1], int):
            shown = self._stage_name(parts[1])
            parts = parts[2:]
        for part in parts:
            shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
        return shown

    def _stage_name(self, number: int) -> str:
        stages = self.data.get("stage")
        stage = stages[number] if isinstance(stages, list) and number < len(stages) else None
        name = stage.get("name") if isinstance(stage, dict) else None
        return name if isinstance(name, str) and name else f"stage[{number}]"


def _has(data: Any, path: KeyPath) -> bool:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
