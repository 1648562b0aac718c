"""Where what an attempt read is now, and whether it is still what the attempt read."""

from __future__ import annotations

from pathlib import Path

from cockpit.schedule.resolved_recipe import folder_with
from engines.artifacts.manifest import ManifestError, read_manifest
from engines.inputs.hashing import hashes_of
from engines.inputs.record import read_record
from engines.run_dir.paths import RunDir
from engines.stage_file import StageInput, read_stage_file
from recipes.problems import printable

STREAM_FIELDS = ("data", "model")
"""The inputs that decide the tokens of a step; of a model its tokenizer."""
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_SHOWN = 5


def place_of(run: RunDir, given: StageInput | None) -> str | None:
    """Where an input is: the folder with the manifest that the attempt read, which a rerun of its stage may have moved
    to `out.1`; without one, the place of now. The run itself may have been moved."""
    if given is None:
        return None
    recorded = run.out(given.name) if given.origin == "stage" else None if given.path is None else Path(given.path)
    if recorded is None:
        return None
    same = folder_with(given.manifest_sha256, recorded, run.root) if given.manifest_sha256 else None
    if same is not None:
        return str(same)
    return str(recorded) if recorded.exists() else given.path


def changed_since(run: RunDir, stage: str, attempts: list[int]) -> list[str]:
    """What of the data, or of the tokenizer, is not what these attempts of a stage read: a phrase for each input."""
    found = []
    for attempt in attempts:
        inputs = read_stage_file(run.stage_json(stage, attempt)).inputs
        for field in STREAM_FIELDS:
            place = place_of(run, inputs.get(field))
            if place is None:
                continue
            if changed := _changed(run, stage, attempt, field, inputs[field], Path(place)):
                found.append(f"{stage}.{field} {printable(place, 300)}: {changed}")
    return list(dict.fromkeys(found))


def _changed(run: RunDir, stage: str, attempt: int, field: str, given: StageInput, place: Path) -> str:
    """How an input differs from what was read, or nothing; an attempt without a record proves nothing."""
    recorded = _recorded(run, stage, attempt, field, given, place)
    if recorded is None:
        return f"its manifest is not the one that was read ({str(given.manifest_sha256)[:12]})"
    names = [name for name in recorded if field != "model" or not name.endswith(_WEIGHTS)]
    root = place if place.is_dir() else place.parent
    inside = [name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]
    there = [name for name in inside if (root / name).is_file()]
    hashes = dict(zip(there, hashes_of([root / name for name in there]), strict=True))
    different = [f"missing {printable(name, 200)}" for name in names if name not in hashes]
    different += [f"changed {printable(name, 200)}" for name in there if hashes[name].sha256 != recorded[name]]
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    return ", ".join(different[:_SHOWN]) + more


def _recorded(
    run: RunDir, stage: str, attempt: int, field: str, given: StageInput, place: Path
) -> dict[str, str] | None:
    """SHA-256 by file of what was read; None if only its manifest is known and another one is there."""
    listed = next((one.files for one in read_record(run.inputs_json(stage, attempt)) if one.field == field), [])
    if listed:
        return {file.path: file.sha256 for file in listed}
    if not given.manifest_sha256:
        return {}
    if folder_with(given.manifest_sha256, place, run.root) is None:
        return None
    try:
        return {entry["path"]: entry["sha256"] for entry in read_manifest(place)["files"]}
    except ManifestError:
        return None
