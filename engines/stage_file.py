"""`stage.json`: everything that an attempt's process is given, written by the supervisor and read by the engine's host.

The engine may run in another interpreter, with another version of this package than the supervisor's: a newer format is
refused with what to do. Files of older versions stay readable, so a field added here needs a default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from engines.files import write_durably
from engines.json_text import read_json
from recipes.graph import Origin
from recipes.problems import OperatorError

FORMAT = 1
_NEWER = "this interpreter's engines are older than the cockpit: install the same version in both"


class StageInput(msgspec.Struct, frozen=True, kw_only=True):
    """Where an input of the stage is.

    `path` is absolute: the finished folder of a stage, or what the operator named; None for a hub id. `output` is what
        a
    stage made there, a word of the `accepts` lists. `manifest_sha256` identifies the content, as far as it is known.
    """

    origin: Origin
    name: str
    path: str | None = None
    output: str | None = None
    manifest_sha256: str | None = None


class StageResume(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint to resume from; `sha256` is its manifest's."""

    attempt: int
    step: int
    path: str
    sha256: str


class StageFile(msgspec.Struct, frozen=True, kw_only=True):
    """The content. `stage` has every field of the stage; `tag` is its type, a key of `STAGE_TYPES`."""

    format: int = FORMAT
    run_root: str
    tag: str
    stage: dict[str, Any]
    attempt: int
    inputs: dict[str, StageInput] = {}
    resume: StageResume | None = None
    learning_rate_scale: float = 1.0
    fingerprint: str = ""


class _Inputs(msgspec.Struct):
    inputs: dict[str, StageInput]


def write_stage_file(path: Path, content: StageFile) -> None:
    """Write the file whole.

    Raises:
        OSError: it cannot be written.
    """
    write_durably(path, json.dumps(msgspec.to_builtins(content), indent=1).encode())


def read_stage_file(path: Path) -> StageFile:
    """Read the file.

    Raises:
        OperatorError: it is of a newer format, cannot be read, or lacks something; with what to do.
    """
    try:
        value = read_json(path)
        found = value.get("format") if isinstance(value, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise OperatorError(f"{path}: format — got {found}; allowed up to {FORMAT}", _NEWER)
        return msgspec.convert(value, StageFile)
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{path} is not a stage file: {error}", "the supervisor writes it; resume the run"
        ) from error


def read_stage_inputs(path: Path) -> dict[str, StageInput]:
    """The inputs alone, from a file of any format that has them as this one does.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no inputs of this form.
    """
    return msgspec.convert(read_json(path), _Inputs).inputs
