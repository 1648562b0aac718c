"""The resolved recipe of a run: its stages, their order, and the origin of their inputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256
from engines.events.runs import FieldChanged
from engines.files import file_sha256
from engines.json_text import read_json
from engines.run_dir.moved_runs import place_now
from engines.run_dir.paths import RunDir, RunDirError
from engines.stage_file import StageInput
from recipes.graph import Origin
from recipes.schema import Recipe
from recipes.stages.fields import StageFields
from recipes.stages.registry import output_of


@dataclass(frozen=True)
class InputRef:
    """One input of a stage: another stage, an absolute path, or a hub id.

    `manifest_sha256` is set for the output of another run, as it was when this run was launched.
    """

    origin: Origin
    name: str
    path: str | None
    manifest_sha256: str | None = None

    def record(self) -> dict[str, str | None]:
        """The input as JSON data; without a hash as in older versions."""
        found: dict[str, str | None] = {"origin": self.origin, "name": self.name, "path": self.path}
        return found if self.manifest_sha256 is None else {**found, "manifest_sha256": self.manifest_sha256}


@dataclass(frozen=True)
class RunRecipe:
    """The resolved recipe of a run, read from `recipe.json`."""

    recipe: Recipe
    order: list[str]
    inputs: dict[str, dict[str, InputRef]]
    only: list[str]
    changes: list[FieldChanged] = dataclasses.field(default_factory=list)
    """fields that resumes changed, oldest first; `recipe` contains the new values"""
    origins: dict[str, dict[str, str]] | None = None
    """where each field that was set comes from, by stage; None for a run of an older version"""

    def stage(self, name: str) -> StageFields:
        return next(stage for stage in self.recipe.stage if stage.name == name)

    def wanted(self) -> list[str]:
        """The stages of this run, in execution order."""
        return [name for name in self.order if not self.only or name in self.only]

    def descendants(self, names: set[str]) -> set[str]:
        """The named stages and all stages that depend on them."""
        found = set(names)
        for name in self.order:
            if any(ref.origin == "stage" and ref.name in found for ref in self.inputs.get(name, {}).values()):
                found.add(name)
        return found

    def ancestors(self, names: set[str]) -> set[str]:
        """The named stages and all stages that they depend on."""
        found = set(names)
        for name in reversed(self.order):
            if name in found:
                found |= {ref.name for ref in self.inputs.get(name, {}).values() if ref.origin == "stage"}
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            "recipe": self.recipe.model_dump(mode="json", by_alias=True),
            "order": self.order,
            "inputs": {
                stage: {field: ref.record() for field, ref in refs.items()} for stage, refs in self.inputs.items()
            },
            "only": self.only,
            "changes": msgspec.to_builtins(self.changes),
            "origins": self.origins,
        }

    @staticmethod
    def read(run: RunDir) -> RunRecipe:
        """The recipe of a run directory.

        Raises:
            RunDirError: recipe.json is missing, or is not a resolved recipe.
        """
        try:
            value = read_json(run.recipe_json)
            return RunRecipe(
                recipe=Recipe.model_validate(value["recipe"]),
                order=list(value["order"]),
                inputs={s: {f: InputRef(**ref) for f, ref in refs.items()} for s, refs in value["inputs"].items()},
                only=list(value["only"]),
                changes=msgspec.convert(value.get("changes", []), list[FieldChanged]),
                origins=msgspec.convert(value.get("origins"), dict[str, dict[str, str]] | None),
            )
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise RunDirError(f"{run.recipe_json}: not a resolved recipe: {error}") from error

    def stage_inputs(self, run: RunDir, name: str) -> dict[str, StageInput]:
        """The stage's inputs in the form of `stage.json`: outputs of stages with the present hash of their manifest.

        What the recipe names by a path is identified by the engine, which reads it.
        """
        result: dict[str, StageInput] = {}
        for field, ref in self.inputs.get(name, {}).items():
            path = str(run.out(ref.name)) if ref.origin == "stage" else ref.path
            sha256 = manifest_hash(run.out(ref.name)) if ref.origin == "stage" else ref.manifest_sha256
            if path and ref.manifest_sha256 is not None:
                path = str(folder_with(ref.manifest_sha256, Path(path), run.root) or path)
            result[field] = StageInput(
                origin=ref.origin,
                name=ref.name,
                path=path,
                output=output_of(self.stage(ref.name)) if ref.origin == "stage" else None,
                manifest_sha256=sha256,
            )
        return result


def folder_with(sha256: str, recorded: Path, near: Path) -> Path | None:
    """The folder of another run whose manifest has this SHA-256; None if it was removed.

    Args:
        sha256: its manifest's SHA-256.
        recorded: where it was when the run was launched. A rerun of its stage may have replaced it (`out.1`, …), and
            its run may have been moved.
        near: a folder of the run that reads it.
    """
    place = place_now(recorded, near)
    for folder in [place, *sorted(place.parent.glob(f"{place.name}.*"))]:
        try:
            if manifest_sha256(folder) == sha256:
                return folder
        except ManifestError:
            continue
    return None


def require_outputs_of_runs(plan: RunRecipe, run: RunDir, name: str) -> None:
    """Check that the outputs of other runs that a stage reads are those of the launch.

    Raises:
        FileNotFoundError: one was removed, or its content changed.
    """
    for field, ref in plan.inputs.get(name, {}).items():
        if ref.manifest_sha256 is None or ref.path is None:
            continue
        if folder_with(ref.manifest_sha256, Path(ref.path), run.root) is None:
            raise FileNotFoundError(
                f"{name}.{field} — {ref.name} is not found: no folder at {ref.path} has the manifest "
                f"{ref.manifest_sha256[:12]} that it had when this run was launched"
            )


def manifest_hash(folder: Path) -> str | None:
    """The SHA-256 of a folder's manifest; None without one."""
    try:
        return file_sha256(folder / MANIFEST)
    except OSError:
        return None
