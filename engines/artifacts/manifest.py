"""Folders that are committed atomically: every file listed with size and SHA-256, made durable, and renamed into place.

`manifest.json` is written last; its own SHA-256 is the identity of the folder. A manifest from elsewhere is not
trusted: no path may leave its folder, no symbolic link is followed, and its size is bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from engines.files import file_sha256, fsync_file, fsync_folder, read_regular_bytes, write_durably
from engines.json_text import parse_json

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_RESERVED = frozenset({"format", "files"})


class ManifestError(ValueError):
    """A manifest that is missing, damaged, too large, or refused as unsafe."""


def write_manifest(folder: Path, known_sha256: Mapping[str, str] | None = None, /, **fields: Any) -> str:
    """List, hash and fsync every file of a folder, and write its `manifest.json` last.

    Args:
        folder: the finished folder; an older manifest in it is replaced and not listed.
        known_sha256: of files that were just hashed, by their paths in the folder.
        fields: further fields of the manifest; non-finite floats are written as the strings of the journal.

    Returns:
        The manifest's SHA-256, as hex.

    Raises:
        ManifestError: an entry of the folder is neither a file nor a folder, or a field has a reserved name.
        OSError: the disk is full or fails; no manifest is left behind.
    """
    if taken := _RESERVED & fields.keys():
        raise ManifestError(f"manifest field {min(taken)!r} is reserved")
    files = []
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            continue
        fsync_file(path)
        sha256 = (known_sha256 or {}).get(name) or file_sha256(path)
        files.append({"path": name, "bytes": path.stat().st_size, "sha256": sha256})
    files.sort(key=lambda entry: str(entry["path"]))
    body = {"format": FORMAT, **fields, "files": files}
    data = json.dumps(_finite(body), indent=1, allow_nan=False).encode() + b"\n"
    for directory in _folders(folder):
        if directory != folder:
            fsync_folder(directory)
    write_durably(folder / MANIFEST, data)
    return hashlib.sha256(data).hexdigest()


def amend_manifest(folder: Path, **fields: Any) -> str:
    """Replace fields of a committed folder's manifest; its files and their list stay. A kill leaves the old or the new
    manifest.

    Returns:
        The new manifest's SHA-256, as hex: the folder has a new identity.

    Raises:
        ManifestError: the folder has no readable manifest, or a field has a reserved name.
        OSError: the disk is full or fails; the old manifest is kept.
    """
    if taken := _RESERVED & fields.keys():
        raise ManifestError(f"manifest field {min(taken)!r} is reserved")
    manifest = read_manifest(folder)
    files = manifest.pop("files")
    data = json.dumps(_finite({**manifest, **fields, "files": files}), indent=1, allow_nan=False).encode() + b"\n"
    write_durably(folder / MANIFEST, data)
    return hashlib.sha256(data).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; its form is checked, its files are not.

    Raises:
        ManifestError: it is missing, too large, not JSON, of a newer format, or names a path outside the folder.
    """
    return _parse(_read_bytes(folder))


def manifest_sha256(folder: Path) -> str:
    """SHA-256 of the manifest's bytes: the identity of the folder.

    Raises:
        ManifestError: the folder has no readable manifest.
    """
    return hashlib.sha256(_read_bytes(folder)).hexdigest()


def verify_manifest(folder: Path, hashes: bool = True) -> list[str]:
    """The differences between a folder and its manifest, as messages; an empty list means that it is intact.

    Files that the manifest does not list are ignored: they are not part of the folder's identity.

    Args:
        folder: the folder.
        hashes: also compare every file's SHA-256, which reads all bytes; sizes are always compared.
    """
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        return [str(error)]
    problems = []
    for entry in manifest["files"]:
        problem = _check_entry(folder, entry, hashes=hashes)
        if problem:
            problems.append(problem)
    return problems


def problems_against(folder: Path, sha256: str) -> list[str]:
    """Why a folder is not an intact copy of the one whose manifest has this SHA-256; empty when it is.

    A missing folder or manifest is a problem in the list, not an exception: the caller makes the folder again.
    """
    try:
        if manifest_sha256(folder) != sha256:
            return [f"{MANIFEST} has another SHA-256 than recorded"]
    except ManifestError as error:
        return [str(error)]
    return verify_manifest(folder)


def commit_folder(tmp: Path, final: Path) -> None:
    """Rename a finished folder into place and make the rename durable.

    An older folder of the name is kept: it becomes `final.1`, or the next free number.
    """
    if final.exists() or final.is_symlink():
        number = 1
        while os.path.lexists(replaced := final.with_name(f"{final.name}.{number}")):
            number += 1
        final.rename(replaced)
    tmp.rename(final)
    for parent in {final.parent, tmp.parent}:
        fsync_folder(parent)


def _read_bytes(folder: Path) -> bytes:
    try:
        return read_regular_bytes(folder / MANIFEST, MAX_MANIFEST_BYTES, follow=False)
    except OSError as error:
        raise ManifestError(f"{MANIFEST} cannot be read: {error.strerror}") from error


def _parse(data: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(data)
    except ValueError as error:
        raise ManifestError(f"{MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), list):
        raise ManifestError(f"{MANIFEST} has no list of files")
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT:
        raise ManifestError(f"{MANIFEST} has format {version!r}; allowed up to {FORMAT}")
    for entry in manifest["files"]:
        _check_shape(entry)
    return manifest


def _check_shape(entry: Any) -> None:
    if not isinstance(entry, Mapping):
        raise ManifestError(f"{MANIFEST} lists an entry that is not a file")
    path, size, sha256 = entry.get("path"), entry.get("bytes"), entry.get("sha256")
    if not isinstance(path, str) or not isinstance(sha256, str) or isinstance(size, bool) or not isinstance(size, int):
        raise ManifestError(f"{MANIFEST} lists a file without path, bytes or sha256")
    pure = PurePosixPath(path)
    if not path or "\0" in path or pure.is_absolute() or ".." in pure.parts or str(pure) in {".", MANIFEST}:
        raise ManifestError(f"{MANIFEST} names {path[:80]!r}, which is not a file inside the folder")


def _check_entry(folder: Path, entry: Mapping[str, Any], *, hashes: bool) -> str:
    name, path = entry["path"], folder / entry["path"]
    try:
        if not path.parent.resolve().is_relative_to(folder.resolve()):
            return f"{name} is outside the folder"
        found = path.lstat()
    except (OSError, RuntimeError):
        return f"{name} is missing"
    if not stat.S_ISREG(found.st_mode):
        return f"{name} is not a file"
    if found.st_size != entry["bytes"]:
        return f"{name} has {found.st_size} bytes, not {entry['bytes']}"
    if hashes:
        try:
            actual = file_sha256(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if actual != entry["sha256"]:
            return f"{name} has changed since it was written (SHA-256 differs)"
    return ""


def _files(folder: Path) -> Iterator[Path]:
    for directory in _folders(folder):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise ManifestError(f"{entry.path} is neither a file nor a folder")
            if entry.is_file():
                yield Path(entry.path)


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and all folders below it, deepest first, so that a parent is synced after its children."""
    for directory, _, _ in os.walk(folder, topdown=False, onerror=_raise):
        yield Path(directory)


def _raise(error: OSError) -> None:
    raise error


def _finite(value: Any) -> Any:
    """JSON has no NaN: non-finite floats become the strings of the journal."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
