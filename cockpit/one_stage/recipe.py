"""A recipe of one stage as a value, and as text; no other module writes such a text.

A merge or an export of an existing result is a new run with one stage, whose inputs are named by path. Buttons
(`from_run`) and commands (`from_words`) choose the inputs, and this module writes the text. It shows the inputs' hashes
in comments, for the reader: the run records them when it starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from recipes.spelling import spell

NAME_CHARACTERS = 40
"""Maximum length of a recipe's name."""


@dataclass(frozen=True)
class Input:
    """An input of a stage: a folder, a file, or a model of a hub (then `path` is None).

    `text` is its value in the recipe; `manifest_sha256` is known for outputs of runs.
    """

    text: str
    path: Path | None = None
    manifest_sha256: str | None = None

    @classmethod
    def at(cls, path: Path, manifest_sha256: str | None = None) -> Input:
        """The input at a path."""
        return cls(str(path), path, manifest_sha256)


@dataclass(frozen=True)
class _Field:
    """One field of the stage; the hash belongs to the input that it names."""

    key: str
    value: str | int | list[str]
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class Merge:
    """One or more adapters, added to their base model."""

    kind: ClassVar[str] = "merge"
    name: ClassVar[str] = "merged"

    model: Input
    adapters: tuple[Input, ...]
    dtype: str = "base"

    def fields(self) -> list[_Field]:
        """The stage's fields, in the order of the text."""
        return [_named("model", self.model), *_adapters(self.adapters), _Field("dtype", self.dtype)]


@dataclass(frozen=True)
class Export:
    """GGUF files of a model.

    Attributes:
        model: the model.
        file_types: the files to write.
        adapter: an adapter that is merged into the model while the files are written.
        adapters: adapters that are written as GGUF adapters for the model.
        data: held-out text for the comparison.
        imatrix: for which file types an importance matrix is computed; None for the default.
    """

    kind: ClassVar[str] = "export"
    name: ClassVar[str] = "gguf"

    model: Input
    file_types: tuple[str, ...]
    adapter: Input | None = None
    adapters: tuple[Input, ...] = ()
    data: Input | None = None
    imatrix: str | None = None

    def fields(self) -> list[_Field]:
        """The stage's fields, in the order of the text."""
        found = [_named("model", self.model)]
        found += [_named("adapter", self.adapter)] if self.adapter else []
        found += [_Field("adapters", [adapter.text for adapter in self.adapters])] if self.adapters else []
        found += [_named("data", self.data)] if self.data else []
        found.append(_Field("file_types", list(self.file_types)))
        return found + ([_Field("imatrix", self.imatrix)] if self.imatrix else [])


@dataclass(frozen=True)
class Origin:
    """The run that the input comes from, and the result in it: `tuned, step 400`."""

    run: str
    title: str


@dataclass(frozen=True)
class OneStageRecipe:
    """The recipe: its name, its text, and the run that its input comes from ("" for none)."""

    name: str
    text: str
    parent: str


def one_stage_recipe(stage: Merge | Export, of: str, origin: Origin | None = None) -> OneStageRecipe:
    """The recipe of a stage.

    Args:
        stage: the stage.
        of: the recipe or the folder that its input comes from; the name begins with it.
        origin: the run that its input comes from.
    """
    name = short_name(of, stage.name)
    head = [_Field("schema", 1), _Field("name", name)]
    if origin is not None:
        words = f"{stage.kind.capitalize()} of {origin.title}, from run {origin.run}."
        head.append(_Field("description", words))
    body = [_Field("name", stage.name), _Field("kind", stage.kind), *stage.fields()]
    lines = [*map(_line, head), "", "[[stage]]", *map(_line, body)]
    return OneStageRecipe(name, "\n".join(lines) + "\n", origin.run if origin is not None else "")


def short_name(of: str, suffix: str) -> str:
    """A recipe name of at most 40 characters, derived from its origin; a suffix is not repeated (`gguf-gguf`)."""
    stem = "".join(char if char.isascii() and (char.islower() or char.isdigit()) else "-" for char in of.lower())
    stem = stem.strip("-") or "run"
    for old in (Merge.name, Export.name):
        stem = stem.removesuffix(f"-{old}")
    return f"{stem[: NAME_CHARACTERS - 1 - len(suffix)].rstrip('-')}-{suffix}"


def _named(key: str, of: Input) -> _Field:
    return _Field(key, of.text, of.manifest_sha256)


def _adapters(adapters: Sequence[Input]) -> list[_Field]:
    """One adapter with its hash, or a list."""
    if len(adapters) == 1:
        return [_named("adapter", adapters[0])]
    return [_Field("adapters", [adapter.text for adapter in adapters])]


def _line(field: _Field) -> str:
    comment = f"  # manifest sha256 {_hexadecimal(field.manifest_sha256)}" if field.manifest_sha256 else ""
    return f"{field.key} = {spell(field.value)}{comment}"


def _hexadecimal(text: str) -> str:
    """A hash for a comment: only its hexadecimal digits, because the record may contain other text."""
    return "".join(char for char in text if char in "0123456789abcdef")[:64]
