"""The values of a form: what a recipe's text contains for each field of each stage, without validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cockpit.forms.rows import ordered_sections, output_row
from cockpit.forms.values import NO_VALUE, NoValue
from recipes.fields import IDENTITY, FieldSpec, recipe_fields
from recipes.problems import RecipeError
from recipes.stages.registry import output_word, tag_of_table
from recipes.toml_read import parse
from recipes.toml_scan import KeyPath, TomlIndex

RECIPE_TABLES = {"stage", "defaults"}
RECIPE = -1
"""The position of the recipe's own keys."""


class RecipeData:
    """A recipe's text as TOML data; empty if the text is not TOML.

    A stage is identified by its position in the file (`place`); the recipe's own keys have the position `RECIPE`.

    Args:
        text: the recipe.
        path: the recipe's file, for messages.
    """

    def __init__(self, text: str, path: Path) -> None:
        self.table: dict[str, Any] = {}
        self.index = TomlIndex()
        with suppress(RecipeError):
            self.table, self.index = parse(text, path)
        stages = self.table.get("stage")
        self.stages = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []

    def equals(self, other: RecipeData) -> bool:
        """Whether both texts have the same values, in any spelling; 1 and 1.0 differ, NaN equals NaN."""
        return repr(self.table) == repr(other.table)

    def tag(self, place: int) -> str | None:
        """The type of a stage; None for an unknown type, and for a position without a stage."""
        return tag_of_table(self.stages[place]) if 0 <= place < len(self.stages) else None

    def sections(self, place: int) -> dict[str, list[FieldSpec]]:
        """The fields at a position, by section; of a stage of unknown type, only its output, empty for an unknown
        kind."""
        if place == RECIPE:
            return {"Recipe": recipe_fields()}
        tag = self.tag(place)
        if tag:
            return ordered_sections(tag)
        kind = self.stages[place].get("kind") if 0 <= place < len(self.stages) else None
        output = output_row(kind) if isinstance(kind, str) else None
        return {} if output is None else {output.section: [output]}

    def specs(self, place: int) -> list[FieldSpec]:
        """The fields at a position, in the order of its sections."""
        return [spec for specs in self.sections(place).values() for spec in specs]

    def spec(self, place: int, key: str) -> FieldSpec | None:
        """A field at a position."""
        return next((spec for spec in self.specs(place) if spec.path == key), None)

    def unknown_keys(self, place: int) -> list[str]:
        """The keys at a position that no field has; of a table of fields, the keys in it. None for an unknown kind."""
        if place != RECIPE and self.tag(place) is None:
            return []
        table = self.table if place == RECIPE else self.stages[place]
        known = {spec.path for spec in self.specs(place)} | (RECIPE_TABLES if place == RECIPE else set(IDENTITY))
        return sorted(_unknown(table, "", known))

    def own(self, place: int, key: str) -> Any:
        """The value of a key in the stage's own table; `NO_VALUE` if the key is missing."""
        if place == RECIPE:
            return self.table.get(key, NO_VALUE)
        return _dig(self.stages[place], key.split(".")) if place < len(self.stages) else NO_VALUE

    def effective(self, place: int, spec: FieldSpec) -> tuple[Any, str]:
        """The effective value and its origin: stage, defaults, default, or "" without a value."""
        own = self.own(place, spec.path)
        if not isinstance(own, NoValue):
            return own, "stage"
        if 0 <= place < len(self.stages):
            kind = str(self.stages[place].get("kind"))
            laid = _dig(self.table.get("defaults"), [kind, *spec.path.split(".")])
            if not isinstance(laid, NoValue):
                return laid, "defaults"
        return (spec.default, "default") if spec.default is not None else (NO_VALUE, "")

    def candidates(self, place: int, key: str) -> list[str]:
        """Candidates for a field: its choices or usual values, or the other stages whose output it accepts."""
        spec = self.spec(place, key)
        if spec is None:
            return []
        if spec.choices or spec.suggests:
            return [str(choice) for choice in spec.choices or spec.suggests]
        names = []
        for other, stage in enumerate(self.stages):
            name = stage.get("name")
            if other != place and isinstance(name, str) and _output(stage) in spec.accepts:
                names.append(name)
        return names


def _unknown(table: Mapping[str, Any], before: str, known: set[str]) -> Iterator[str]:
    for key, value in table.items():
        path = f"{before}{key}"
        if path in known:
            continue
        if isinstance(value, Mapping) and any(other.startswith(f"{path}.") for other in known):
            yield from _unknown(value, f"{path}.", known)
        else:
            yield path


def toml_path(place: int, key: str) -> KeyPath:
    """The key path of a field in the text."""
    return (key,) if place == RECIPE else ("stage", place, *key.split("."))


def _output(stage: dict[str, Any]) -> str:
    """The output of a stage's table, as a word of `accepts` lists; empty for an unknown kind."""
    tag = tag_of_table(stage)
    return "" if tag is None else output_word(tag)


def _dig(table: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(table, dict) or part not in table:
            return NO_VALUE
        table = table[part]
    return table
