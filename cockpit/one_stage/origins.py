"""The recorded origin of a result: the base model of an adapter, and the training data of a model."""

from __future__ import annotations

from pathlib import Path

from cockpit.one_stage.recipe import Input
from cockpit.one_stage.sources import Source
from cockpit.schedule.resolved_recipe import RunRecipe, manifest_hash
from engines.artifacts.adapter_folder import ADAPTER_CONFIG, BASE_JSON
from engines.json_text import read_json
from engines.run_dir.moved_runs import place_now
from engines.run_dir.paths import RunDir, RunDirError
from engines.stage_file import read_stage_inputs

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""Exceptions that a damaged or foreign record raises when it is read."""


def base_of(run: RunDir, source: Source) -> Input | None:
    """The base model of a run's adapter, as its attempt recorded it; None if no record can be read."""
    attempts = [source.attempt] if source.attempt is not None else run.attempts(source.stage)[::-1]
    for attempt in attempts:
        found = _recorded_base(run.stage_json(source.stage, attempt), source.path)
        if found is not None:
            return found
    return _base_json(source.path)


def base_of_folder(adapter: Path) -> Input | None:
    """The base model that an adapter folder names, in base.json or in PEFT's adapter_config.json; else None."""
    return _base_json(adapter) or _peft_base(adapter)


def held_out_data(run: RunDir, stage: str) -> Input | None:
    """The data that a stage's model was trained on last; a comparison reads the held-out part of it.

    A merge reads no data. Its adapter's data counts, else its model's.
    """
    try:
        plan = RunRecipe.read(run)
    except RunDirError:
        return None
    seen: set[str] = set()
    todo = [stage]
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        refs = plan.inputs.get(name, {})
        data = refs.get("data")
        if data is not None:
            path = run.out(data.name) if data.origin == "stage" else Path(data.path or "")
            return Input.at(path, manifest_hash(path)) if data.path != "" and path.is_dir() else None
        learned = [field for field in refs if field.startswith("adapter")]
        todo += [refs[field].name for field in (*learned, "model") if field in refs and refs[field].origin == "stage"]
    return None


def _recorded_base(stage_json: Path, near: Path) -> Input | None:
    try:
        given = read_stage_inputs(stage_json)["model"]
        return Input(given.name) if given.path is None else _moved(given.path, given.manifest_sha256, near)
    except _UNREADABLE:
        return None


def _base_json(adapter: Path) -> Input | None:
    try:
        recorded = read_json(adapter / BASE_JSON)
        manifest = None if recorded.get("method") == "content" else recorded.get("manifest_sha256")
        return _moved(recorded["path"], manifest, adapter)
    except _UNREADABLE:
        return None


def _peft_base(adapter: Path) -> Input | None:
    try:
        return _moved(read_json(adapter / ADAPTER_CONFIG)["base_model_name_or_path"], None, adapter)
    except _UNREADABLE:
        return None


def _moved(text: object, sha256: object, near: Path) -> Input | None:
    """The recorded input where it is now (runs may have been moved together); a name without a path is a hub id."""
    if not isinstance(text, str) or not text:
        return None
    path = place_now(Path(text), near)
    return Input.at(path, sha256 if isinstance(sha256, str) else None) if path.is_absolute() else Input(text)
