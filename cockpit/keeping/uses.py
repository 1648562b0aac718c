"""What of a run other artifacts were made from: the ancestors in every manifest, and the inputs of every recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cockpit.runs.find import run_ids
from engines.artifacts.checkpoints import scan
from engines.artifacts.custody import ancestors
from engines.artifacts.manifest import ManifestError, manifest_sha256, read_manifest
from engines.json_text import read_json
from engines.run_dir.paths import RunDir


@dataclass
class Uses:
    """Who uses what in a folder of runs.

    Attributes:
        by_id: users (`RUN:STAGE`) by the SHA-256 of the manifest that they were made from, or that their recipe names.
        by_path: users by the path that their recipe names.
        unread: manifests that could not be read: what they were made from is unknown.
    """

    by_id: dict[str, set[str]] = field(default_factory=dict)
    by_path: dict[str, set[str]] = field(default_factory=dict)
    unread: list[Path] = field(default_factory=list)

    def of(self, sha256: str, folder: Path) -> set[str]:
        """The users of a folder with this manifest."""
        return self.by_id.get(sha256, set()) | self.by_path.get(str(folder), set())


def uses_in(root: Path, *, besides: Iterable[str] = ()) -> Uses:
    """Search every run of a folder but those named."""
    left_out = set(besides)
    found = Uses()
    for run_id in run_ids(root):
        if run_id not in left_out:
            _search(RunDir(root / run_id), found)
    return found


def made_in(run: RunDir) -> dict[str, Path]:
    """The outputs and checkpoints of a run by the SHA-256 of their manifests."""
    found: dict[str, Path] = {}
    for _, folder in _folders(run):
        try:
            found[manifest_sha256(folder)] = folder
        except ManifestError:
            continue
    return found


def _search(run: RunDir, found: Uses) -> None:
    for stage, folder in _folders(run):
        try:
            links = ancestors(read_manifest(folder))
        except ManifestError:
            found.unread.append(folder)
            continue
        for link in links:
            found.by_id.setdefault(str(link["id"]), set()).add(f"{run.id}:{stage}")
    for stage, ref in _inputs(run):
        if isinstance(ref.get("manifest_sha256"), str):
            found.by_id.setdefault(ref["manifest_sha256"], set()).add(f"{run.id}:{stage}")
        if isinstance(ref.get("path"), str):
            found.by_path.setdefault(ref["path"], set()).add(f"{run.id}:{stage}")


def _folders(run: RunDir) -> Iterator[tuple[str, Path]]:
    for out in run.all_outs(replaced=True):
        if out.is_dir() and not out.is_symlink():
            yield out.parent.name, out
    for stage in run.stage_names():
        for checkpoint in scan(run.stage_dir(stage))[0]:
            yield stage, checkpoint.path


def _inputs(run: RunDir) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The inputs in `recipe.json`, read without the schema: a run of any version counts."""
    try:
        stages = read_json(run.recipe_json).get("inputs", {})
    except (OSError, ValueError, AttributeError):
        return
    for stage, refs in stages.items() if isinstance(stages, dict) else ():
        for ref in refs.values() if isinstance(refs, dict) else ():
            if isinstance(ref, dict):
                yield str(stage), ref
