"""The models that a file was made from, by the identity that evaluations give a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cockpit.runs.verify import Link
from engines.artifacts.adapter_folder import is_adapter
from engines.artifacts.custody import ancestors
from engines.artifacts.manifest import ManifestError, read_manifest
from engines.artifacts.model_files import sha256_of, weights_of
from engines.files import file_sha256
from recipes.stages.registry import STAGE_KINDS


def base_models(links: Sequence[Link], manifest: Mapping[str, Any]) -> dict[str, str]:
    """Names of the models that were trained into the file, by their identities; a model of a hub by its id.

    A model that a training made is no base of it: it has forgotten nothing compared with itself. Without a training,
    every model among the ancestors counts.

    Args:
        links: the export and its ancestors, checked.
        manifest: of the export.
    """
    listed = {link["id"]: link.get("files", []) for link in ancestors(manifest)}
    found: dict[str, str] = {}
    for link in _before_training(links):
        if link.verdict == "known by name":
            found[link.name] = link.name
        elif link.verdict == "whole" and link.folder is not None and _is_model(link.folder):
            files = weights_of([link.folder])
            hashes = _hashes(link.folder, listed.get(link.id, []))

            def digest(file: Path, hashes: Mapping[str, str] = hashes) -> str:
                return hashes.get(file.name) or file_sha256(file)

            found[sha256_of(files, digest)] = link.name
    return found


def _before_training(links: Sequence[Link]) -> list[Link]:
    """The ancestors of trainings; all links but the first, the export, without a training."""
    by_id = {link.id: link for link in links}
    kinds = {kind for kind, row in STAGE_KINDS.items() if row.trains}
    pending = [parent for link in links if link.kind in kinds for parent in link.parents]
    if not any(link.kind in kinds for link in links):
        return list(links[1:])
    seen: dict[str, Link] = {}
    while pending:
        link = by_id.get(pending.pop())
        if link is not None and link.id not in seen:
            seen[link.id] = link
            pending += link.parents
    return list(seen.values())


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not is_adapter(folder)


def _hashes(folder: Path, listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Checked SHA-256 of the folder's files, by their names: of its manifest, or of the record of its content."""
    try:
        entries: Sequence[Mapping[str, Any]] = read_manifest(folder)["files"]
    except ManifestError:
        entries = listed
    return {str(entry["path"]): str(entry["sha256"]) for entry in entries}
