"""The file that is to ship: found by its run, or by its own path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cockpit.runs.find import find_run
from cockpit.runs.verify import made_from
from engines.artifacts.manifest import ManifestError, manifest_sha256, read_manifest
from engines.json_text import read_json
from engines.run_dir.moved_runs import run_named
from engines.run_dir.paths import RunDir, is_run_dir
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable
from recipes.stages.export import EXPORT

PARITY_FILE = "parity.json"
_MAX_PARITY_BYTES = 64 * 1024 * 1024
_SHOWN = 12


@dataclass(frozen=True)
class Subject:
    """A GGUF file, and the export that wrote it.

    Attributes:
        file: the file that is judged; it may be a copy.
        out: the finished folder of the export.
        name: the name that the export gave the file.
        file_type: as the export calls it; empty if its record does not have the file.
        record: the file's entry in the export's record of proofs; empty without one.
        manifest: of the folder.
        run: the run of the export; None if it was not found.
        stage: the export's name.
    """

    file: Path
    out: Path
    name: str
    file_type: str
    record: Mapping[str, Any]
    manifest: Mapping[str, Any]
    run: RunDir | None
    stage: str


def find_subject(root: Path, given: str, wanted: str | None) -> Subject:
    """The file that a run or a path names.

    Args:
        root: the folder of runs.
        given: RUN, RUN:STAGE, or the path of a GGUF file.
        wanted: the file's type or name, where a run has several.

    Raises:
        OperatorError: there is no such file, or it is not clear which one is meant.
    """
    path = Path(given).expanduser()
    if path.is_file():
        file = path.absolute()
        out = made_from(file, [root])
        manifest = _manifest(out)
        return _subject(root, file, out, manifest, _named(file, manifest))
    if path.suffix == ".gguf":
        raise OperatorError(f"no file {printable(str(path), 400)}", "give a GGUF file, or a run")
    return _of_run(root, given, wanted)


def _of_run(root: Path, given: str, wanted: str | None) -> Subject:
    run_part, colon, stage = given.rpartition(":")
    by_stage = bool(colon and run_part and "/" not in stage)
    run = find_run(root, run_part if by_stage else given)
    found: list[tuple[Path, dict[str, Any], dict[str, Any]]] = []
    gone: list[tuple[Path, dict[str, Any]]] = []
    for out in [run.out(stage)] if by_stage else run.all_outs():
        try:
            manifest = read_manifest(out)
        except ManifestError:
            continue
        if manifest.get("kind") == EXPORT.kind:
            records = _records(out, manifest)
            found += [(out, manifest, record) for record in records if (out / record["file"]).is_file()]
            gone += [(out, record) for record in records if not (out / record["file"]).exists()]
    _refuse_missing(given, [one for one in gone if wanted is None or _is(one[1], wanted)], found, wanted)
    if not found:
        raise OperatorError(
            f"{printable(given, 300)} has no finished export with GGUF files", f"see: cockpit show {run.id}"
        )
    chosen = [item for item in found if wanted is None or _is(item[2], wanted)]
    if len(chosen) != 1:
        names = ", ".join(f"{item[2]['file_type']} ({item[2]['file']})" for item in found[:_SHOWN])
        what = f"{len(chosen)} of them are {printable(wanted, 80)}" if wanted else "a verdict is on one file"
        raise OperatorError(
            f"{printable(given, 300)} has {len(found)} GGUF files, and {what}: {printable(names, 800)}",
            "name one: --file TYPE, or file in the table [ship], or give its path",
        )
    out, manifest, record = chosen[0]
    return _subject(root, out / record["file"], out, manifest, record["file"])


def _is(record: Mapping[str, Any], wanted: str) -> bool:
    return wanted in (record["file_type"], record["file"])


def _refuse_missing(
    given: str,
    gone: Sequence[tuple[Path, Mapping[str, Any]]],
    found: Sequence[tuple[Path, Mapping[str, Any], Mapping[str, Any]]],
    wanted: str | None,
) -> None:
    """Refuse a run whose wanted file was written, and is not in its folder any more."""
    if not gone or any(wanted is None or _is(record, wanted) for _, _, record in found):
        return
    names = ", ".join(str(out / record["file"]) for out, record in gone[:_SHOWN])
    raise OperatorError(
        f"{printable(given, 300)}: the export wrote files that are missing now: {printable(names, 800)}",
        "restore them, or give the path of the file: cockpit ship FILE",
    )


def _subject(root: Path, file: Path, out: Path, manifest: Mapping[str, Any], name: str) -> Subject:
    if manifest.get("kind") != EXPORT.kind:
        kind = printable(str(manifest.get("kind", "checkpoint")), 40)
        raise OperatorError(
            f"{printable(str(out), 300)} is the output of a {kind} stage, and not of an export",
            "ship a file that an export stage or cockpit export wrote",
        )
    record = next((item for item in _records(out, manifest) if item["file"] == name), {})
    run = _run_of(root, out, manifest)
    return Subject(
        file, out, name, str(record.get("file_type", "")), record, manifest, run, str(manifest.get("stage", ""))
    )


def _named(file: Path, manifest: Mapping[str, Any]) -> str:
    """The name that the export gave a file: its own in the export's folder, else that of a file of the same size."""
    entries = [entry for entry in manifest["files"] if str(entry["path"]).endswith(".gguf")]
    if any(entry["path"] == file.name for entry in entries):
        return file.name
    size = file.stat().st_size
    return next((str(entry["path"]) for entry in entries if entry["bytes"] == size), file.name)


def _records(out: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of an export's record of proofs; without a record, the GGUF files that it wrote."""
    try:
        files = read_json(out / PARITY_FILE, _MAX_PARITY_BYTES)["files"]
        return [item for item in files if isinstance(item["file"], str) and isinstance(item["file_type"], str)]
    except (OSError, ValueError, LookupError, TypeError):
        names = sorted(str(entry["path"]) for entry in manifest["files"])
        return [{"file": name, "file_type": _type_in(Path(name))} for name in names if name.endswith(".gguf")]


def _type_in(file: Path) -> str:
    """The file type that a file's name ends with; empty without one."""
    ending = file.stem.rpartition("-")[2]
    return ending if ending in FILE_TYPES else ""


def _manifest(out: Path) -> dict[str, Any]:
    try:
        return read_manifest(out)
    except ManifestError as error:
        raise OperatorError(f"{printable(str(out), 400)}: {error}", "give a file of a finished export") from error


def _run_of(root: Path, out: Path, manifest: Mapping[str, Any]) -> RunDir | None:
    """The run that has this output: around the folder, or in the folder of runs by the manifest's id."""
    inside = next((RunDir(place) for place in out.absolute().parents if is_run_dir(place)), None)
    if inside is not None:
        return inside
    run, stage = manifest.get("run"), manifest.get("stage")
    if not isinstance(run, str) or not isinstance(stage, str):
        return None
    found = RunDir(run_named(root, run))
    try:
        same = is_run_dir(found.root) and manifest_sha256(found.out(stage)) == manifest_sha256(out)
    except ManifestError:
        return None
    return found if same else None
