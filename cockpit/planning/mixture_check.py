"""What a text of several sources will be, by the sizes of their files: the shares, and the source that limits them."""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.files import open_regular
from engines.inputs.files_read import files_read, sources_of
from engines.inputs.mixture import FULL, SourceShare, shares_of, targets_of
from engines.inputs.source_tree import STANDARD_LIBRARY, source_folder
from recipes import quantities
from recipes.load import LoadedRecipe
from recipes.problems import printable
from recipes.stages.prepare import PrepareText

_MANY_FILES = 200_000
"""Files of a stage whose sizes are added; more are not looked at."""
_WHOLE = 0.99
_DENSEST = 1032
"""Bytes that one byte of a deflate stream can stand for at most."""


@dataclass(frozen=True)
class MixedSource:
    """A source of a text: its share, the bytes of its files, and how often they will be read. `bytes` is None if it is
    missing or was not looked at."""

    name: str
    share: float
    bytes: int | None
    epochs: float
    limits: bool


@dataclass(frozen=True)
class Mixture:
    """A text of several sources: about the bytes of its train split, and of all that its sources have."""

    stage: str
    sources: list[MixedSource]
    train_bytes: int
    available_bytes: int

    def lines(self) -> list[str]:
        """What `cockpit check` says about it."""
        return [
            f"{self.stage}: {one.name} is missing and will be left out"
            if one.bytes is None
            else f"{self.stage}: {quantities.percent(one.share)} {one.name}, about {quantities.size(one.bytes)} of"
            f" files, read {quantities.number(one.epochs, 2)} time(s)"
            for one in self.sources
        ]

    def warnings(self) -> list[str]:
        """What may not be as the recipe wants it."""
        empty = [
            f"{one.name} has no file with text that the stage reads: the stage will end there"
            for one in self.sources
            if one.bytes == 0
        ]
        if self.train_bytes >= self.available_bytes * _WHOLE:
            return empty
        return empty + [
            f"{one.name} is too small for its weight: the train split will have about"
            f" {quantities.size(self.train_bytes)} of {quantities.size(self.available_bytes)}; raise its epochs, or"
            " lower its weight"
            for one in self.sources
            if one.limits
        ]

    def to_json(self) -> dict[str, Any]:
        """The mixture as JSON."""
        return asdict(self)


def mixtures(loaded: LoadedRecipe) -> list[Mixture]:
    """The mixtures of a recipe, from the sizes of files; markup that a page loses is not subtracted."""
    return [mixture_of(stage) for stage in loaded.recipe.stage if isinstance(stage, PrepareText) and _several(stage)]


def mixture_of(stage: PrepareText) -> Mixture:
    """The mixture of one stage."""
    assert not isinstance(stage.source, str), "a stage with several sources"
    places = sources_of(stage)
    sizes: list[int | None] = []
    for number, one in enumerate(stage.source):
        field = f"source[{number}]"
        place = source_folder(one.path) if one.path == STANDARD_LIBRARY else places.get(field)
        sizes.append(None if place is None else _size(stage, field, place))
    wanted = [SourceShare(one.label, one.weight, one.epochs) for one in stage.source]
    train = 1 - stage.val_fraction - stage.test_fraction
    in_train = [int((size or 0) * train) for size in sizes]
    shares = shares_of(wanted, in_train, stage.mixture_temperature)
    epochs = [one.epochs for one in wanted]
    limit = float("inf") if stage.max_bytes is None else stage.max_bytes * train
    targets = targets_of(shares, in_train, epochs, limit)
    sources = [
        MixedSource(
            printable(one.name, 40),
            share,
            size,
            target / own if own else 0.0,
            bool(own) and target >= one.epochs * own * (1 - FULL),
        )
        for one, share, size, own, target in zip(wanted, shares, sizes, in_train, targets, strict=True)
    ]
    available = sum(own * one.epochs for own, one in zip(in_train, wanted, strict=True))
    return Mixture(stage.name, sources, int(sum(targets)), int(min(available, limit)))


def _several(stage: PrepareText) -> bool:
    return not isinstance(stage.source, str)


def _size(stage: PrepareText, field: str, place: Path) -> int:
    """Bytes of the files of a source; of a packed one, the length that its end says."""
    total = 0
    for number, (_, file) in enumerate(files_read(stage, field, place)):
        if number >= _MANY_FILES:
            break
        try:
            total += _unpacked(file) if file.name.lower().endswith(".gz") else file.stat().st_size
        except OSError:
            continue
    return total


def _unpacked(file: Path) -> int:
    """The last four bytes of a gzip file are its unpacked length, modulo 4 GiB; those of a truncated one are any."""
    with open_regular(file) as packed:
        most = (packed.seek(-4, 2) + 4) * _DENSEST
        return min(int(struct.unpack("<I", packed.read(4))[0]), most)
