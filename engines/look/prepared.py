"""The output that a prepare stage will write, made in a scratch folder: what later stages will read is then known."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.artifacts.data_folder import METADATA
from engines.data.door import ReadCounts, source_of_stage, splits_in
from engines.data.preparing.rows import prepare_rows
from engines.data.preparing.stage import options_of, warnings_of
from engines.json_text import read_object
from recipes import quantities
from recipes.problems import OperatorError
from recipes.stages.prepare import PrepareMessages

MAX_BYTES = 128 * 1024**2
"""Data that is divided before a start; larger data takes longer than an operator waits."""


class TooLargeError(OperatorError):
    """The data is not divided before a start, because that would take too long."""


def prepared_rows(table: Mapping[str, Any], data: str, scratch: Path) -> Path:
    """The folder that a prepare stage will write; a second call for the same stage gives the same folder.

    Args:
        table: the stage's fields, as recipe.json has them.
        data: the file or folder of its data.
        scratch: an existing folder, which the caller removes.

    Raises:
        TooLargeError: the data is large.
        OperatorError: the stage would refuse it.
    """
    stage = PrepareMessages.model_validate(table)
    out = scratch / stage.name
    if out.is_dir():
        return out
    source = source_of_stage(stage, Path(data), data)
    size = sum(file.stat().st_size for files in splits_in(source).values() for file in files)
    if size > MAX_BYTES:
        raise TooLargeError(f"the data of {stage.name} has {quantities.size(size)}, which is not divided in advance")
    work = Path(tempfile.mkdtemp(prefix=f".{stage.name}-", dir=scratch))  # an earlier try may have been refused
    draft = work / "divided"
    draft.mkdir()
    prepare_rows(source, ReadCounts(), draft, work, options_of(stage))
    draft.rename(out)
    return out


def what_is_prepared(folder: Path) -> tuple[list[str], dict[str, int]]:
    """What the stage will warn of when it writes a folder that `prepared_rows` made, and the rows of its splits."""
    metadata = read_object(folder / METADATA)
    return warnings_of(metadata), {name: int(split["examples"]) for name, split in metadata["splits"].items()}
