"""Which files of a place are its data, and which split each is of: a file, a folder, or a cached dataset of a hub.

Only names are looked at. The files that lie least deep are the data; a copy in a folder beside them is not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from engines.artifacts.data_folder import METADATA, TOKENS_JSON
from engines.artifacts.manifest import MANIFEST
from engines.inputs.hub_cache import cached_dataset
from recipes.problems import OperatorError, printable

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Endings of data files; each may have .gz behind it."""
UNSPLIT = ""
"""The name of the split of data that has no splits."""
MAX_FILES = 1_000_000
SHOWN = 6
_NOT_DATA = frozenset(
    {METADATA, TOKENS_JSON, MANIFEST, "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)
"""Files beside the data that describe it."""
_SCHEMA = ".schema.json"
_WORDS: Mapping[str, str] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "evaluation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")


@dataclass(frozen=True)
class DataFiles:
    """The data files of a place.

    Attributes:
        splits: the files of train, val and test, as far as there are any; or all files under `UNSPLIT`. In the order of
            their names.
        left_out: files that could be data and are not read, because others lie less deep or have the name of a split.
    """

    splits: dict[str, list[Path]] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)


def suffix_of(name: str) -> str:
    """The ending by which a file is data, without .gz; empty if it is not."""
    ending = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    return ending if ending in SUFFIXES else ""


def split_of(inside: str) -> str:
    """The split that a file's path inside its place names: its own name first, then the folders; empty for none.

    >>> split_of("data/train-00000-of-00002.parquet"), split_of("dev/part.jsonl"), split_of("attest.json")
    ('train', 'val', '')
    """
    for part in reversed(inside.lower().split("/")):
        found = {_WORDS[word] for word in _WORD.findall(part)}
        if found:
            return found.pop() if len(found) == 1 else UNSPLIT
    return UNSPLIT


def place_of(path: Path | None, name: str) -> Path:
    """The place of an input: its path, or the folder of a hub's dataset in the local cache.

    Raises:
        OperatorError: the dataset is not in the cache.
    """
    found = path or cached_dataset(name)
    if found is None:
        raise OperatorError(
            f"no dataset {printable(name, 200)} in the local hub cache, and engines do not use the network",
            f"download it first: hf download --repo-type dataset {printable(name, 200)}",
        )
    return found


def data_files(place: Path) -> DataFiles:
    """The data files of a file or a folder, by split.

    Raises:
        OperatorError: the place does not exist, has no data files, or it is not clear which files are meant.
    """
    if place.is_file():
        return DataFiles({UNSPLIT: [place]})
    if not place.is_dir():
        raise OperatorError(f"{place} does not exist", "give a file, a folder, or the id of a cached dataset")
    found = sorted(_walk(place))
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise OperatorError(f"{place} has no data files", f"data files end with {kinds}, or with .gz behind it")
    depth = min(name.count("/") for name in found)
    names = [name for name in found if name.count("/") == depth]
    named = {name: split for name in names if (split := split_of(name))}
    if not named:
        return DataFiles({UNSPLIT: [place / name for name in names]}, _rest(place, found, names))
    if len(named) < len(names) and "train" not in named.values():
        others = [name for name in names if name not in named]
        raise OperatorError(
            f"{place}: {_listed(named)} {'is' if len(named) == 1 else 'are'} named for a split, but {_listed(others)}"
            f" {'is' if len(others) == 1 else 'are'} not",
            "name the file to train on train.jsonl (or with its own ending), or give one file in data",
        )
    splits = {split: [name for name in named if named[name] == split] for split in ("train", "val", "test")}
    for split, files in splits.items():
        _refuse_two_kinds(place, split, files)
    _refuse_configurations(place, named)
    return DataFiles(
        {split: [place / name for name in files] for split, files in splits.items() if files},
        _rest(place, found, named),
    )


def _walk(place: Path) -> Iterator[str]:
    """Paths of data files inside a folder, with `/`; hidden names and links to folders are not followed."""
    count = 0

    def refuse(error: OSError) -> None:
        raise OperatorError(f"{error.filename} cannot be read: {error.strerror}", "make the folder readable")

    for at, folders, names in os.walk(place, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(at).relative_to(place)
        for name in names:
            if suffix_of(name) and not _describes(name):
                count += 1
                if count > MAX_FILES:
                    raise OperatorError(
                        f"{place} has more than {MAX_FILES} data files", "join them, or split the folder"
                    )
                if (Path(at) / name).is_file():
                    yield (inside / name).as_posix()


def _describes(name: str) -> bool:
    """Whether a file describes data beside it, or is hidden."""
    return name.startswith(".") or name in _NOT_DATA or name.lower().endswith(_SCHEMA)


def _rest(place: Path, found: Iterable[str], used: Iterable[str]) -> list[Path]:
    taken = set(used)
    return [place / name for name in found if name not in taken]


def _refuse_two_kinds(place: Path, split: str, files: list[str]) -> None:
    kinds = {suffix_of(name): name for name in files}
    if len(kinds) > 1:
        raise OperatorError(
            f"{place}: the {split} split is there as {_listed(list(kinds.values()))}",
            "remove one of them, or give one file in data",
        )


def _refuse_configurations(place: Path, named: Mapping[str, str]) -> None:
    """Refuse a dataset with several parts of which each has the same splits: one of them is meant."""
    homes: dict[str, set[str]] = {}
    for name, split in named.items():
        folders = [part for part in name.split("/")[:-1] if _WORDS.get(part.lower()) != split]
        homes.setdefault(split, set()).add("/".join(folders))
    several = next((parts for parts in homes.values() if len(parts) > 1), None)
    if several:
        raise OperatorError(
            f"{place} has several parts with splits of their own: {_listed(sorted(several))}",
            f"give one of them in data, such as {place / min(several)}",
        )


def _listed(names: Iterable[str]) -> str:
    shown = [printable(name, 80) for name in names]
    rest = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + rest
