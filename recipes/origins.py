"""Where each value of a loaded recipe comes from: the recipe, the defaults of a kind, or `--set`."""

from __future__ import annotations

from typing import Any

from recipes.fields import fields_of
from recipes.load import LoadedRecipe
from recipes.source import Source
from recipes.stages.registry import kind_of, tag_of_table
from recipes.toml_scan import KeyPath


def origins_of(loaded: LoadedRecipe) -> dict[str, dict[str, str]]:
    """The origin of each field that was set, by stage: `recipe`, `defaults` or `--set`. A field without one has the
    schema's default."""
    found: dict[str, dict[str, str]] = {}
    for number, table in enumerate(loaded.resolved["stage"]):
        tag = str(tag_of_table(table))
        fields = {spec.path: _origin(loaded.source, number, tag, spec.path) for spec in fields_of(tag)}
        found[str(table["name"])] = {path: origin for path, origin in fields.items() if origin is not None}
    return found


def _origin(source: Source, number: int, tag: str, field: str) -> str | None:
    parts = field.split(".")
    own: KeyPath = ("stage", number, *parts)
    laid: KeyPath = ("defaults", kind_of(tag), *parts)
    for path, origin in ((own, "recipe"), (laid, "defaults")):
        if _has(source.data, path):
            overridden = any(path[:length] in source.overrides for length in range(len(path), 0, -1))
            return "--set" if overridden else origin
    return None


def _has(data: Any, path: KeyPath) -> bool:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
