"""Verification of an artifact and its ancestors by SHA-256."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engines.artifacts.custody import ancestors, content_sha256, parent_ids
from engines.artifacts.manifest import MANIFEST, ManifestError, manifest_sha256, read_manifest, verify_manifest
from engines.files import file_sha256
from engines.run_dir.moved_runs import run_named
from engines.run_dir.paths import RUN_ID, RunDir, is_run_dir
from recipes.problems import OperatorError, printable

Verdict = Literal["whole", "damaged", "gone", "known by name"]


@dataclass(frozen=True)
class Link:
    """An artifact or an ancestor of it, checked.

    Attributes:
        id: its SHA-256.
        kind: kind of the stage that wrote it, "checkpoint", "folder" or "hub".
        name: run, stage and step, or its recorded folder.
        parents: ids of its inputs.
        verdict: "whole": found, and every byte is unchanged; "damaged": found, and changed; "gone": not found, such as
            a checkpoint that rotation removed; "known by name": no hash was recorded.
        problems: the problems, file by file.
        folder: where it was found.
    """

    id: str
    kind: str
    name: str
    parents: tuple[str, ...]
    verdict: Verdict
    problems: tuple[str, ...] = ()
    folder: Path | None = None

    def record(self) -> dict[str, Any]:
        """The link as JSON values."""
        folder = None if self.folder is None else str(self.folder)
        return {**vars(self), "parents": list(self.parents), "problems": list(self.problems), "folder": folder}


def check_descent(folder: Path, runs: Sequence[Path]) -> Iterator[Link]:
    """Check a folder that a stage wrote, then each of its ancestors, nearest first.

    Args:
        folder: has a `manifest.json`.
        runs: folders of runs that are searched for ancestors.

    Raises:
        OperatorError: the folder has no readable manifest.
    """
    try:
        manifest = read_manifest(folder)
        own = manifest_sha256(folder)
    except ManifestError as error:
        raise OperatorError(
            f"{folder}: {error}", "give a finished output: RUN, RUN:STAGE, its folder, or a file in it"
        ) from error
    problems = tuple(verify_manifest(folder))
    facts = {"kind": "checkpoint", **{key: value for key, value in manifest.items() if isinstance(value, str | int)}}
    yield Link(
        own,
        str(facts["kind"]),
        _name(facts),
        tuple(parent_ids(manifest)),
        "damaged" if problems else "whole",
        problems,
        folder,
    )
    homes = list(dict.fromkeys([*_homes(folder), *runs]))
    for link in reversed(ancestors(manifest)):
        yield _check(link, homes)


def check_file(file: Path, folder: Path) -> Link | None:
    """A damaged link if a file is not one of those that the folder's stage wrote, nor a copy of one; else None.

    The files of the manifest are not read again: `check_descent` does that.

    Raises:
        OperatorError: the folder has no readable manifest.
    """
    try:
        manifest = read_manifest(folder)
    except ManifestError as error:
        raise OperatorError(f"{folder}: {error}") from error
    written = {str(entry["path"]) for entry in manifest["files"]} | {MANIFEST}
    if file.is_relative_to(folder) and str(file.relative_to(folder)) in written:
        return None
    sha256 = file_sha256(file)
    if any(entry["sha256"] == sha256 for entry in manifest["files"]):
        return None
    facts = {"kind": "checkpoint", **{key: value for key, value in manifest.items() if isinstance(value, str | int)}}
    size = file.stat().st_size
    like = next((str(entry["path"]) for entry in manifest["files"] if entry["bytes"] == size), "")
    more = f"; {like} has the same size and another SHA-256" if like else ""
    problem = f"it is not a file that {_name(facts)} wrote{more}"
    return Link(sha256, "file", str(file), (), "damaged", (problem,), file.parent)


def made_from(file: Path, runs: Sequence[Path]) -> Path:
    """The finished folder of a file: one that contains it, or for a copy, the folder with a file of the same bytes.

    Raises:
        OperatorError: no finished folder in `runs` has such a file.
    """
    around = next((folder for folder in file.parents if (folder / MANIFEST).is_file()), None)
    if around is not None:
        return around
    size = file.stat().st_size
    sha256, like = "", ""
    for home in runs:
        outs = [out for run in home.glob("*") for out in RunDir(run).all_outs(replaced=True)]
        for found in sorted(outs, reverse=True):
            with suppress(ManifestError):
                for entry in read_manifest(found)["files"]:
                    if entry["bytes"] == size:
                        sha256 = sha256 or file_sha256(file)
                        if entry["sha256"] == sha256:
                            return found
                        like = like or f"{found}/{entry['path']}"
                    if Path(str(entry["path"])).name == file.name and entry["bytes"]:
                        like = f"{found}/{entry['path']}"
    more = f"; {printable(like, 400)} has the same name or size and other content" if like else ""
    raise OperatorError(
        f"{printable(str(file), 400)}: no finished stage in {', '.join(map(str, runs))} has a file with the same"
        f" SHA-256{more}",
        "a damaged copy: copy it again" if like else "give the folder of the run that it comes from: --runs-dir DIR",
    )


def _homes(folder: Path) -> list[Path]:
    """The folders of runs that contain this folder."""
    return [place.parent for place in folder.absolute().parents if is_run_dir(place)]


def _check(link: Mapping[str, Any], homes: Sequence[Path]) -> Link:
    known = (link["id"], link["kind"], _name(link), tuple(link["parents"]))
    if link["method"] == "name":
        return Link(*known, "known by name")
    if link["method"] == "content":
        return _check_content(Link(*known, "gone"), Path(link.get("folder", "")), link.get("files", []))
    for folder in _places(link, homes):
        try:
            if manifest_sha256(folder) != link["id"]:
                continue
        except ManifestError:
            continue
        problems = tuple(verify_manifest(folder))
        return Link(*known, "damaged" if problems else "whole", problems, folder)
    return Link(*known, "gone")


def _check_content(link: Link, folder: Path, files: Sequence[Mapping[str, Any]]) -> Link:
    """Check a folder without a manifest: the listed files, else all of them (links of older versions)."""
    if not folder.is_absolute() or not folder.exists():
        return link
    if files:
        problems = tuple(filter(None, (_check_file(folder, entry) for entry in files)))
        return Link(link.id, link.kind, link.name, link.parents, "damaged" if problems else "whole", problems, folder)
    try:
        found = content_sha256(folder)
    except OSError as error:
        return Link(link.id, link.kind, link.name, link.parents, "damaged", (f"could not be read: {error}",), folder)
    if found == link.id:
        return Link(link.id, link.kind, link.name, link.parents, "whole", (), folder)
    problem = "its content changed: a file was changed, added or removed"
    return Link(link.id, link.kind, link.name, link.parents, "damaged", (problem,), folder)


def _check_file(folder: Path, entry: Mapping[str, Any]) -> str:
    path = folder if folder.is_file() else folder / entry["path"]
    try:
        return "" if file_sha256(path) == entry["sha256"] else f"{entry['path']} has changed (SHA-256 differs)"
    except OSError as error:
        return f"{entry['path']} cannot be read: {error.strerror or error}"


def _places(link: Mapping[str, Any], homes: Sequence[Path]) -> Iterator[Path]:
    """Folders where a link may be: its recorded folder, its place in its run, and the replaced outputs there."""
    if link.get("folder", "").startswith("/"):
        yield Path(link["folder"])
    run, stage, attempt = link.get("run", ""), link.get("stage", ""), link.get("attempt", 0)
    if not RUN_ID.match(run) or not RUN_ID.match(stage):
        return
    for home in homes:
        place = RunDir(run_named(home, run))
        if "step" in link:
            yield place.checkpoint(stage, attempt, link["step"])
        else:
            yield place.out(stage)
            yield from place.replaced_outs(stage)


def _name(facts: Mapping[str, Any]) -> str:
    if not facts.get("run"):
        return printable(str(facts.get("folder", "")), 300)
    step = f" step {facts['step']}" if "step" in facts else ""
    return printable(f"{facts['run']}:{facts.get('stage', '')}{step}", 300)
