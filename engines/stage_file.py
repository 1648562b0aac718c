"""`stage.json`: the input of an attempt's process. The supervisor writes it, the engine's host reads it.

The engine may run in another interpreter with another version of this package: it refuses a newer format with a hint.
Files of older versions stay readable, so a new field needs a default.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from engines.files import write_durably
from engines.json_text import read_json
from engines.run_dir.paths import RunDir, attempt_folders
from recipes.graph import Origin
from recipes.problems import OperatorError

FORMAT = 2
"""2: the engine identifies the inputs and computes the fingerprint; before, the supervisor did both."""
_NEWER = "this interpreter has an older Cockpit than the supervisor; install the same version in both"


class StageInput(msgspec.Struct, frozen=True, kw_only=True):
    """One input of the stage.

    `path` is absolute: the output folder of a stage, or the path that the operator named; None for a hub id. `output`
    is the kind of content, as in `accepts`, when a stage made it. `manifest_sha256` identifies the content, if known.
    """

    origin: Origin
    name: str
    path: str | None = None
    output: str | None = None
    manifest_sha256: str | None = None


class StageResume(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint to resume from; `sha256` is the SHA-256 of its manifest."""

    attempt: int
    step: int
    path: str
    sha256: str


class ExpectedInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the inputs must be: those of `attempt`'s record, except those that the operator accepted since.

    `journaled` has the identity of each external input by the journal, by field; `accepted` maps a field to the SHA-256
    of its accepted content.
    """

    attempt: int
    journaled: dict[str, str] = {}
    accepted: dict[str, str] = {}


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
    guard_trips: int = 0
    """attempts that a guard ended, since the operator's last start"""
    fingerprint: str = ""
    """only in files of format 1"""
    launch: int = 0
    """number of the supervisor that started the attempt"""
    expected: ExpectedInputs | None = None
    """None for a stage without an earlier record"""
    adjusted: dict[str, Any] = {}
    """values of fields that replace those of `stage` in this attempt, because an earlier one ran out of memory"""
    first_start: str = ""
    """local time at which the stage's first attempt started, as `moment` gives it; empty in older files"""


class _Inputs(msgspec.Struct):
    inputs: dict[str, StageInput]


def moment(text: object) -> str:
    """A local time in ISO 8601 form, if the text is one; else empty."""
    if isinstance(text, str):
        with suppress(ValueError):
            return datetime.fromisoformat(text).replace(tzinfo=None).isoformat(timespec="seconds")
    return ""


def present_moment() -> str:
    """The local time, which is the one that a chat template sees."""
    return datetime.now().isoformat(timespec="seconds")  # noqa: DTZ005 - a template writes the local date


def first_start_of(run: RunDir, stage: str) -> str:
    """When the first attempt of a stage started, by the files of its attempts; empty if none of them says it."""
    for folder in attempt_folders(run.stage_dir(stage)):
        with suppress(OperatorError):
            if found := moment(read_stage_file(run.stage_json(stage, int(folder.name))).first_start):
                return found
    return ""


def write_stage_file(path: Path, content: StageFile) -> None:
    """Write the file atomically.

    Raises:
        OSError: it cannot be written.
    """
    write_durably(path, json.dumps(msgspec.to_builtins(content), indent=1).encode())


def read_stage_file(path: Path) -> StageFile:
    """Read the file.

    Raises:
        OperatorError: the file has a newer format, cannot be read, or lacks a field; the hint says what to do.
    """
    try:
        value = read_json(path)
        found = value.get("format") if isinstance(value, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise OperatorError(f"{path}: format — got {found}; allowed up to {FORMAT}", _NEWER)
        return msgspec.convert(value, StageFile)
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{path} is not a stage file: {error}", "resume the run; the supervisor writes the file again"
        ) from error


def read_stage_inputs(path: Path) -> dict[str, StageInput]:
    """Only the inputs, from a file of any format whose inputs have this form.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no inputs of this form.
    """
    return msgspec.convert(read_json(path), _Inputs).inputs
