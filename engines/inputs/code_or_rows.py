"""Whether a prepare stage with output = messages reads rows, or asks questions about a code base."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from engines.artifacts.data_folder import METADATA
from engines.inputs.code_tree import BUILD_FILES, CodeRules, code_files
from engines.inputs.data_place import data_files, suffix_of
from engines.json_text import read_json
from recipes.problems import OperatorError
from recipes.stages.prepare import PrepareMessages


def asks_about_code(stage: PrepareMessages, place: Path | None) -> bool:
    """Whether the data is sources or a text stage's documents.

    With format = auto, a folder of sources is a code base if the files of a build are at its top, or if it has no data
    files except JSON, which is also the form of a project's settings. `columns` are those of rows.

    Args:
        stage: the stage.
        place: its data; None for a dataset of a hub.
    """
    if stage.format != "auto":
        return stage.format == "code"
    if stage.columns or place is None or not place.is_dir():
        return False
    if has_documents(place):
        return True
    try:
        files = [file for split in data_files(place).splits.values() for file in split]
    except OperatorError:
        files = []
    is_project = any((place / name).is_file() for name in BUILD_FILES)
    only_json = all(suffix_of(file.name) == ".json" for file in files)
    return (is_project or only_json) and _has_sources(stage, place)


def has_documents(folder: Path) -> bool:
    """Whether a folder is that of a text stage, and not a code base with a metadata.json of its own."""
    try:
        metadata = read_json(folder / METADATA)
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("kind") == "text"


def _has_sources(stage: PrepareMessages, folder: Path) -> bool:
    return any(file.role == "source" for file in code_files(folder, CodeRules.of(stage), Counter()))
