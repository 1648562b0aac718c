"""The chain of custody of an artifact: data, tokenizer, checkpoint, adapter, merged model, GGUF, each with a SHA-256.

The manifest of every finished stage lists all its ancestors, so a folder that was copied elsewhere keeps its history. A
folder that Cockpit wrote is identified by its manifest (which lists every file's SHA-256), a folder without a manifest
by its content, and a model of a hub by its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256, read_manifest
from engines.files import file_sha256

MAX_LINKS = 10_000
"""Most links to read from one manifest; a real chain has tens."""
_FACTS = {"id": str, "method": str, "kind": str, "run": str, "stage": str, "folder": str, "attempt": int, "step": int}


MAX_FILES = 500
"""Most files of a folder without a manifest that a link lists; a larger folder is identified by all its files."""


@dataclass(frozen=True)
class Parent:
    """A source of a stage: its folder or file, or only its name when no folder is known.

    `files` are those that the stage read (path inside the folder, bytes, SHA-256) if the folder has no manifest that
    vouches for them; `sha256` is then the identity of their contents.
    """

    name: str
    path: Path | None
    sha256: str = ""
    files: tuple[tuple[str, int, str], ...] = ()


def custody_of(parents: Iterable[Parent], checkpoint: Path | None = None) -> dict[str, Any]:
    """The `custody` value of a manifest.

    Args:
        parents: the stage's inputs.
        checkpoint: the checkpoint with the weights of the stage's output.

    Returns:
        `parents`, the ids of the nearest links, and `ancestors`, every link once, older ones first. A link has `id`,
        `method` ("manifest", "content" or "name": the id is the SHA-256 of that), `kind`, `parents`, and `run`,
        `stage`, `attempt`, `step`, `folder` where they are known.
    """
    links: dict[str, dict[str, Any]] = {}
    nearest = [_add(parent, links) for parent in parents]
    if checkpoint is not None and (checkpoint / MANIFEST).is_file():
        nearest = [_add(Parent(checkpoint.name, checkpoint), links, nearest)]
    return {"parents": list(dict.fromkeys(nearest)), "ancestors": list(links.values())}


def ancestors(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The links that a manifest lists, older ones first; malformed ones are left out."""
    custody = manifest.get("custody")
    listed = custody.get("ancestors") if isinstance(custody, dict) else None
    links = []
    for link in (listed if isinstance(listed, list) else [])[:MAX_LINKS]:
        if not isinstance(link, dict) or not link.get("id"):
            continue
        known = {key: link[key] for key, kind in _FACTS.items() if type(link.get(key)) is kind}
        if {"id", "method", "kind"} <= known.keys():
            files = _listed_files(link.get("files"))
            links.append({**known, "parents": _ids(link.get("parents")), **({"files": files} if files else {})})
    return links


def parent_ids(manifest: Mapping[str, Any]) -> list[str]:
    """Ids of the direct sources of the folder."""
    custody = manifest.get("custody")
    return _ids(custody.get("parents") if isinstance(custody, dict) else manifest.get("parents"))


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or over the names and SHA-256 of all files of a folder.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    files = [path] if path.is_file() else sorted(_files(path))
    total = hashlib.sha256()
    for file in files:
        digest = file_sha256(file)
        name = file.name if file == path else file.relative_to(path).as_posix()
        total.update(f"{name}\0{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _add(parent: Parent, links: dict[str, dict[str, Any]], parents: list[str] | None = None) -> str:
    """Add a link after its own ancestors; returns its id."""
    link = _link(parent)
    for older in link.pop("ancestors"):
        links.setdefault(older["id"], older)
    if parents is not None and not link["parents"]:
        link["parents"] = parents
    links.setdefault(link["id"], link)
    return str(link["id"])


def _link(parent: Parent) -> dict[str, Any]:
    """One link with its `ancestors`. An unreadable source is identified by its name, so the finished stage is kept."""
    name = parent.name if parent.path is None else str(parent.path)
    known = {"folder": name, "parents": [], "ancestors": []}
    if 0 < len(parent.files) <= MAX_FILES:
        files = [{"path": path, "bytes": size, "sha256": sha256} for path, size, sha256 in parent.files]
        return known | {"id": parent.sha256, "method": "content", "kind": "folder", "files": files}
    if parent.path is not None:
        try:
            return known | _manifest_link(parent.path)
        except ManifestError:
            pass
        try:
            return known | {"id": content_sha256(parent.path), "method": "content", "kind": "folder"}
        except OSError:
            pass
    identity = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return known | {"id": identity, "method": "name", "kind": "hub" if parent.path is None else "folder"}


def _manifest_link(folder: Path) -> dict[str, Any]:
    """The facts of a link from a folder's manifest.

    Raises:
        ManifestError: the folder has no readable manifest.
    """
    manifest = read_manifest(folder)
    facts = {
        key: manifest[key] for key in ("run", "stage", "attempt", "step") if type(manifest.get(key)) is _FACTS[key]
    }
    kind = manifest["kind"] if isinstance(manifest.get("kind"), str) else "checkpoint"
    known = {"id": manifest_sha256(folder), "method": "manifest", "kind": kind, **facts}
    return known | {"parents": parent_ids(manifest), "ancestors": ancestors(manifest)}


def _ids(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)][:MAX_LINKS] if isinstance(value, list) else []


def _listed_files(value: Any) -> list[dict[str, Any]]:
    """The files of a link; empty if one of them is malformed or outside its folder."""
    kinds = {"path": str, "bytes": int, "sha256": str}
    if not isinstance(value, list) or len(value) > MAX_FILES:
        return []
    files = []
    for entry in value:
        if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
            return []
        pure = PurePosixPath(entry["path"])
        if pure.is_absolute() or ".." in pure.parts or "\0" in entry["path"]:
            return []
        files.append({key: entry[key] for key in kinds})
    return files


def _files(folder: Path) -> Iterable[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        yield from (Path(place) / name for name in names if (Path(place) / name).is_file())
