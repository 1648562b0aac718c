"""Whether a prepare stage with output = messages reads rows, or asks questions about a code base."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from engines.artifacts.data_folder import METADATA
from engines.inputs.code_tree import BUILD_FILES, CodeRules, code_files
from engines.inputs.data_place import data_files, suffix_of
from engines.json_text import read_json
from recipes.problems import OperatorError
from recipes.stages.code_fields import CodeFields
from recipes.stages.data_fields import ReadFields
from recipes.stages.prepare import PrepareMessages
from recipes.stages.row_fields import RowFields


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


def unused_fields(stage: PrepareMessages, *, about_code: bool) -> list[str]:
    """The fields that the recipe sets and that this kind of data does not use."""
    of_code = [name for name in CodeFields.__annotations__ if name != "max_examples"]
    of_rows = [*RowFields.__annotations__, *ReadFields.__annotations__]
    fields = PrepareMessages.model_fields
    return [
        name
        for name in (of_rows if about_code else of_code)
        if name in fields and getattr(stage, name) != fields[name].get_default(call_default_factory=True)
    ]


def unused_warning(stage: PrepareMessages, *, about_code: bool) -> str:
    """What an operator should know about such fields; empty if the stage sets no such field."""
    unused = unused_fields(stage, about_code=about_code)
    if not unused:
        return ""
    kinds = ("a code base", "of rows") if about_code else ("rows", "of a code base")
    return f"the data is {kinds[0]}: {', '.join(unused)} {'are' if len(unused) > 1 else 'is'} {kinds[1]}, and not used"
