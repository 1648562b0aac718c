"""What an attempt read: `inputs.json` in its folder lists every file of every external input with its SHA-256.

A stage is judged by this record, never by the present files. At a resume and at a retry, the present files are compared
with it. A folder of a stage is identified by its manifest, a model of a hub by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256, read_manifest
from engines.events.attempts import RecordedInput
from engines.files import read_regular_bytes, write_durably
from engines.inputs.files_read import accepted_by, files_read, sources_of, template_of
from engines.inputs.hashing import FileHash, hashes_of
from engines.inputs.hub_cache import cached_dataset, cached_model
from engines.stage_file import StageInput
from recipes.fingerprint import fingerprint
from recipes.problems import OperatorError
from recipes.stages.data_fields import DATASET
from recipes.stages.fields import StageFields

FORMAT = 1
MAX_RECORD_BYTES = 256 * 1024 * 1024
OUTSIDE = frozenset({"path", "run"})
"""Origins of inputs that lie outside the run: a path, and a finished stage of another run."""
SOURCE, TEMPLATE = "source", "chat_template"
"""Fields that name something outside the recipe's graph: a folder of `prepare` (`source[0]` of several), and the file
of a chat template."""

Method: TypeAlias = Literal["content", "manifest", "name"]
Progress: TypeAlias = Callable[[int, int], None]


def _quiet(_done: int, _total: int) -> None:
    """No progress."""


class InputFile(msgspec.Struct, frozen=True):
    """One file: its path relative to the input, its bytes, and its SHA-256."""

    path: str
    bytes: int
    sha256: str


class InputRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a stage.

    `method` says what `sha256` is of: the contents of `files` (`content`), the manifest of a folder that Cockpit wrote
    (`manifest`), or nothing (`name`: `sha256` is empty, and the name identifies a model of a hub). `revision` is
    the commit of a model of a hub that was read.
    """

    field: str
    name: str
    method: str
    sha256: str = ""
    path: str | None = None
    files: list[InputFile] = []
    revision: str = ""

    @property
    def identity(self) -> str:
        """What the fingerprint takes: the hash, or the name."""
        return self.sha256 or self.name

    def summary(self) -> RecordedInput:
        """The input in the journal: without the list of files."""
        return RecordedInput(
            field=self.field,
            name=self.name,
            method=self.method,
            sha256=self.sha256,
            files=len(self.files),
            bytes=sum(file.bytes for file in self.files),
            revision=self.revision,
        )


class _File(msgspec.Struct):
    format: int
    inputs: list[InputRecord]


def external_inputs(stage: StageFields, inputs: Mapping[str, StageInput]) -> dict[str, Path]:
    """The inputs of a stage that other programs may change, by field: paths that the recipe names, the file of its chat
    template, and datasets in the local hub cache."""
    found = {field: Path(given.path) for field, given in inputs.items() if given.origin in OUTSIDE and given.path}
    for field, given in inputs.items():
        if given.origin == "hub" and DATASET in accepted_by(stage, field) and (folder := cached_dataset(given.name)):
            found[field] = folder
    template = template_of(stage)
    return {**found, **sources_of(stage), **({TEMPLATE: template} if template is not None else {})}


def is_outside_the_graph(field: str) -> bool:
    """Whether a field of a record names no stage: see `SOURCE`."""
    return field.partition("[")[0] in (SOURCE, TEMPLATE)


def identify_inputs(
    stage: StageFields,
    inputs: Mapping[str, StageInput],
    progress: Progress = _quiet,
    *,
    cached: bool = True,
) -> list[InputRecord]:
    """The record of a stage's inputs as they are now.

    Args:
        stage: the stage that reads them.
        inputs: its inputs, with the manifest's SHA-256 of those that stages wrote.
        progress: called with bytes done and in total; what it raises ends the work.
        cached: whether the cache may save reading files.

    Raises:
        OperatorError: a file cannot be read.
    """
    external = external_inputs(stage, inputs)
    listed = {field: files_read(stage, field, path) for field, path in external.items()}
    hashes = iter(hashes_of([path for files in listed.values() for _, path in files], progress, cached=cached))
    contents = {field: [_input_file(name, path, next(hashes)) for name, path in listed[field]] for field in external}
    names = {field: given.name for field, given in inputs.items()}
    records = [
        _of_content(field, names.get(field, str(path)), path, contents[field]) for field, path in external.items()
    ]
    for field, given in inputs.items():
        if field not in external:
            sha256 = given.manifest_sha256 or ""
            method: Method = "manifest" if sha256 else "name"
            folder = cached_model(given.name) if given.origin == "hub" else None
            commit = folder.name if folder is not None else ""
            records.append(
                InputRecord(
                    field=field, name=given.name, method=method, sha256=sha256, path=given.path, revision=commit
                )
            )
    return sorted(records, key=lambda record: record.field)


def require_pinned(records: Iterable[InputRecord], inputs: Mapping[str, StageInput]) -> None:
    """Check that the outputs of other runs are those that were found at the launch.

    Raises:
        OperatorError: the files in a folder are not those of its manifest then.
    """
    for record in records:
        pinned = inputs[record.field].manifest_sha256 if record.field in inputs else None
        if pinned is not None and record.sha256 != pinned:
            raise OperatorError(
                f"{record.field} — {record.name} is not what it was when this run was launched: the files in "
                f"{record.path} are not those of the manifest {pinned[:12]}",
                "restore the folder, or launch a new run",
            )


def _input_file(name: str, path: Path, found: FileHash) -> InputFile:
    if found.problem:
        raise OperatorError(f"input {path} {found.problem}", "restore the file, then resume the run")
    return InputFile(name, found.bytes, found.sha256)


def _of_content(field: str, name: str, path: Path, files: list[InputFile]) -> InputRecord:
    """A folder that Cockpit wrote keeps the identity of its manifest, if the manifest lists the files as they are."""
    manifest = _vouched(path, files)
    method: Method = "manifest" if manifest else "content"
    sha256 = manifest or content_identity(files)
    return InputRecord(field=field, name=name, method=method, sha256=sha256, path=str(path), files=files)


def content_identity(files: Iterable[InputFile]) -> str:
    """SHA-256 over the paths and hashes of files: equal for equal contents, wherever they lie."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.path}\0{file.sha256}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _vouched(folder: Path, files: list[InputFile]) -> str:
    """The SHA-256 of a folder's manifest if it lists each of these files with the hash that it has; else empty.

    A manifest in a folder from elsewhere proves nothing about files that were changed after it was written.
    """
    if not files or not (folder / MANIFEST).is_file():
        return ""
    try:
        listed = {entry["path"]: entry["sha256"] for entry in read_manifest(folder)["files"]}
        return manifest_sha256(folder) if all(listed.get(file.path) == file.sha256 for file in files) else ""
    except ManifestError:
        return ""


def stage_fingerprint(stage: StageFields, identities: Mapping[str, str]) -> str:
    """The fingerprint of a stage: of its fields, and of the identity of each input by its field."""
    return fingerprint(stage.model_dump(mode="json"), [identities[field] for field in sorted(identities)])


# ---- the file


def write_record(path: Path, records: list[InputRecord]) -> None:
    """Write `inputs.json`.

    Raises:
        OSError: the disk is full or fails.
    """
    write_durably(path, json.dumps(msgspec.to_builtins(_File(FORMAT, records)), indent=1).encode())


def read_record(path: Path) -> list[InputRecord]:
    """Read `inputs.json`; empty if it is missing or cannot be used."""
    try:
        found = msgspec.json.decode(read_regular_bytes(path, MAX_RECORD_BYTES, follow=False), type=_File)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return []
    return found.inputs if found.format <= FORMAT else []
