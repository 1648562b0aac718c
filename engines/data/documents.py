"""The text folder: train.jsonl, val.jsonl and test.jsonl with one document per line, and metadata.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.data_folder import METADATA
from engines.data.split import SPLITS
from engines.files import open_regular
from engines.json_text import read_json
from recipes.problems import OperatorError


class Document(msgspec.Struct, frozen=True):
    """One file of the corpus. `path` is relative to the source, with `/`."""

    path: str
    text: str


PROBE = "probe"
"""The name of the fact probe's file beside the splits, and of its rows in recipes."""


def split_file(path: Path, split: str) -> Path:
    """The file of a split's documents (or rows)."""
    return path / f"{split}.jsonl"


def is_text_folder(path: Path) -> bool:
    """Whether a prepare stage with output = text wrote the folder."""
    try:
        metadata = read_json(path / METADATA)
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("kind") == "text"


def corpus_bytes(path: Path, splits: tuple[str, ...] = SPLITS) -> int:
    """Total size of the splits' files, for progress while they are read."""
    return sum(split_file(path, split).stat().st_size for split in splits if split_file(path, split).is_file())


def read_documents(path: Path, split: str) -> Iterator[tuple[Document, int]]:
    """The documents of a split in file order, one at a time, each with the number of bytes of its line.

    Raises:
        OperatorError: the file is missing, or a line is not a document; the message begins `file:line`.
    """
    file = split_file(path, split)
    if not file.is_file():
        raise OperatorError(f"{file} does not exist", "give a folder from a prepare stage with output = text")
    decoder = msgspec.json.Decoder(Document)
    with open_regular(file) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield decoder.decode(line), len(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise OperatorError(f"{file}:{number}: not a document: {error}", "prepare the text again") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a small, readable JSON file."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
