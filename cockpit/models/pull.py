"""Downloads a model into the hub's cache: at a fixed commit, the needed files only, each verified.

huggingface_hub transfers; the plan, the resume of a part after a break, and the proof of each file are here. The cache
has the layout of huggingface_hub, so that every other program finds the model. A pull continues with the part that an
ended process left.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cockpit.models.hub_replies import hub_errors, limited_memory
from cockpit.models.needed import RemoteFile, needed
from cockpit.planning.models import disk_free
from engines.files import file_sha256, fsync_folder, write_text
from engines.inputs.hub_cache import hub_cache
from recipes import quantities
from recipes.problems import OperatorError, printable

RECORD = "cockpit-pull.json"
"""Beside the snapshots of a model: what was verified, by commit."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,4}")
_MOST_FILES = 100_000
_SPARE_BYTES = 64 * 1024 * 1024
"""Disk that stays free."""
_PART = ".cockpit-part"
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """What a pull will do.

    Attributes:
        hub_id: the model.
        revision: as it was named: a branch, a tag or a commit.
        commit: the commit that it is now.
        files: the needed files.
        home: the model's folder in the cache.
    """

    hub_id: str
    revision: str
    commit: str
    files: list[RemoteFile]
    home: Path

    @property
    def snapshot(self) -> Path:
        """The folder of the commit."""
        return self.home / "snapshots" / self.commit

    def missing(self) -> list[RemoteFile]:
        """Files whose content is not in the cache yet."""
        return [one for one in self.files if not self.blob(one).is_file()]

    def blob(self, file: RemoteFile) -> Path:
        """Where the content of a file is."""
        return self.home / "blobs" / (file.sha256 or file.blob)

    def part(self, file: RemoteFile) -> Path:
        """Where the part of a file is that an interrupted pull left."""
        blob = self.blob(file)
        return blob.with_name(blob.name + _PART)

    def left_bytes(self, files: Sequence[RemoteFile]) -> int:
        """Bytes of these files that are still to be transferred."""
        return sum(max(0, one.size - _size(self.part(one))) for one in files)


Progress = Callable[[int, int], None]
"""Takes transferred and all bytes of this pull."""


def plan_of(hub_id: str, revision: str, patterns: Sequence[str]) -> Plan:
    """Ask the hub what a revision has; nothing is written.

    Raises:
        OperatorError: the hub refuses or cannot be reached, or what it says cannot be used.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise OperatorError("HF_HUB_OFFLINE is set, which forbids the network", "unset it for this command")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise OperatorError(f"ID@REVISION — got {printable(revision, 100)!r}; allowed a branch, a tag or a commit")
    from huggingface_hub import HfApi

    with hub_errors(hub_id, revision), limited_memory():
        info = HfApi(endpoint=_endpoint()).model_info(hub_id, revision=revision, files_metadata=True, timeout=30)
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit) or (_COMMIT.fullmatch(revision) and commit != revision):
        raise OperatorError(
            f"{hub_id}: the hub answered with commit {printable(commit, 60)!r} for revision {printable(revision, 60)}",
            "check HF_ENDPOINT",
        )
    siblings = list(info.siblings or [])[:_MOST_FILES]
    files = [_remote(one) for one in siblings]
    home = hub_cache() / f"models--{hub_id.replace('/', '--')}"
    try:
        chosen = needed(files, patterns)
    except OperatorError as error:
        raise OperatorError(f"{hub_id}: {error.message}", error.hint) from error
    return Plan(hub_id, revision, commit, chosen, home)


def _remote(given: Any) -> RemoteFile:
    """A file as the hub lists it; without a size or a hash that can be compared, it is not `provable`."""
    size, lfs = given.size, given.lfs
    sha256 = str(lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else ""
    blob = str(given.blob_id or "")
    known = _SHA256.fullmatch(sha256) or (not lfs and _COMMIT.fullmatch(blob))
    if not isinstance(size, int) or size < 0 or not known:
        return RemoteFile(str(given.rfilename), 0)
    return RemoteFile(str(given.rfilename), size, sha256, blob if _COMMIT.fullmatch(blob) else "")


def check_disk(plan: Plan) -> None:
    """Refuse a pull that does not fit the disk.

    Raises:
        OperatorError: it does not.
    """
    _check_disk(plan, plan.left_bytes(plan.missing()))


def _check_disk(plan: Plan, left: int) -> None:
    free = disk_free(plan.home)
    if free is not None and left + _SPARE_BYTES > free:
        raise OperatorError(
            f"{plan.hub_id} needs {quantities.size(left)} more, and {hub_cache()} has {quantities.size(free)} free",
            "free disk space, or set HF_HUB_CACHE to a folder on a larger disk",
        )


def pull(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Verify what is in the cache, and transfer and verify the rest; returns the record of what was verified.

    The commit's folder is made after all contents were verified. A content in the cache that is damaged is transferred
    again, and replaced when the new one is whole.

    Raises:
        OperatorError: the hub refuses, a file is not what the hub says, or the disk is full or cannot be written. Parts
            are kept, except of a file whose content is wrong.
    """
    try:
        (plan.home / "blobs").mkdir(parents=True, exist_ok=True)
        wanted = [one for one in plan.files if not _intact(plan, one)]
        total = plan.left_bytes(wanted)
        _check_disk(plan, total)
        done = 0
        for file in wanted:
            done = _transfer(plan, file, done, total, progress)
        return _finished(plan)
    except OSError as error:
        where = f", {printable(str(error.filename), 400)}" if error.filename else ""
        raise OperatorError(
            f"{plan.hub_id}{where}: {error.strerror or printable(str(error), 200)}; what was transferred is kept",
            "HF_HUB_CACHE names the folder of the cache",
        ) from error


def _finished(plan: Plan) -> dict[str, Any]:
    """Make the commit's folder of verified contents; returns the record of them."""
    plan.snapshot.mkdir(parents=True, exist_ok=True)
    for file in plan.files:
        _link(plan, file)
    fsync_folder(plan.snapshot)
    record = _recorded(plan)
    if plan.revision != plan.commit:
        ref = plan.home / "refs" / plan.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_text(ref, plan.commit)
    return record


def _transfer(plan: Plan, file: RemoteFile, done: int, total: int, progress: Progress) -> int:
    """Transfer one file and verify it; returns the bytes of all files so far."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    # Its warnings print addresses, which may be signed.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    part = plan.part(file)
    url = hf_hub_url(plan.hub_id, file.name, revision=plan.commit, endpoint=_endpoint())
    with _open_part(part) as stream:
        have = os.fstat(stream.fileno()).st_size
        if have > file.size:
            stream.truncate(0)
            have = 0
        stream.seek(have)
        meter = _meter(plan, file, have, done, total, progress)
        if have < file.size or not file.size:
            with hub_errors(plan.hub_id, plan.revision, file.name):
                http_get(
                    url,
                    stream,
                    resume_size=have,
                    headers=build_hf_headers(),
                    expected_size=file.size or None,
                    displayed_filename=file.name,
                    tqdm_class=meter,
                )
        stream.flush()
        os.fsync(stream.fileno())
        _verify(plan, file, stream)
        part.replace(plan.blob(file))
    return done + file.size - have


@contextmanager
def _open_part(part: Path) -> Iterator[BinaryIO]:
    """The part of a file, open and locked."""
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(descriptor, "r+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorError(
                f"another process downloads {printable(str(part), 400)}", "wait until it has ended"
            ) from error
        yield stream


def _meter(plan: Plan, file: RemoteFile, have: int, done: int, total: int, progress: Progress) -> Any:
    """A class in the form of tqdm that counts the bytes of one file, and ends a file longer than the hub says."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    received = have

    class Meter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal received
            received += int(n or 0)
            if received > file.size:
                raise OperatorError(
                    f"{plan.hub_id}: {printable(file.name, 200)} is longer than the {file.size} bytes that the hub"
                    " says",
                    "try again later, or check HF_ENDPOINT",
                )
            progress(done + received - have, total)

    return Meter


def _verify(plan: Plan, file: RemoteFile, stream: BinaryIO) -> None:
    """Compare the content with its hash, and remove a part whose content is wrong.

    Raises:
        OperatorError: it differs.
    """
    size, found = _content(file, stream)
    wanted = file.sha256 or file.blob
    if size != file.size or found != wanted:
        plan.part(file).unlink(missing_ok=True)
        raise OperatorError(
            f"{plan.hub_id}: the content of {printable(file.name, 200)} is not what the hub says: {size} bytes with"
            f" {'SHA-256' if file.sha256 else 'git hash'} {found}; expected {file.size} bytes with {wanted}",
            "the part was removed; try again, or check HF_ENDPOINT",
        )


def _intact(plan: Plan, file: RemoteFile) -> bool:
    """Whether the cache has the content, and it is the one that its name and the hub say."""
    try:
        with plan.blob(file).open("rb") as stream:
            return _content(file, stream) == (file.size, file.sha256 or file.blob)
    except FileNotFoundError:
        return False


def _content(file: RemoteFile, stream: BinaryIO) -> tuple[int, str]:
    """Bytes and hash of a content, the kind of hash that the hub states for the file."""
    stream.seek(0)
    size = os.fstat(stream.fileno()).st_size
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    while block := stream.read(_BLOCK):
        digest.update(block)
    return size, digest.hexdigest()


def _link(plan: Plan, file: RemoteFile) -> None:
    """The file's name in the commit's folder, as a link to its content."""
    place = plan.snapshot / file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(plan.blob(file), place.parent)
    if place.is_symlink() and str(place.readlink()) == target:
        return
    beside = place.with_name(f".{place.name}{_PART}")
    with suppress(FileNotFoundError):
        beside.unlink()
    beside.symlink_to(target)
    beside.replace(place)


def _recorded(plan: Plan) -> dict[str, Any]:
    """Write and return the record of the verified files."""
    files = []
    for file in plan.files:
        sha256 = file.sha256 or file_sha256(plan.blob(file))
        files.append({"name": file.name, "bytes": file.size, "sha256": sha256})
    record = {
        "format": 1,
        "id": plan.hub_id,
        "revision": plan.revision,
        "commit": plan.commit,
        "endpoint": _endpoint() or "https://huggingface.co",
        "verified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": files,
    }
    write_text(plan.home / f"{plan.commit}.{RECORD}", json.dumps(record, indent=1) + "\n")
    return record


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _endpoint() -> str | None:
    """The mirror that the environment names."""
    return os.environ.get("HF_ENDPOINT") or None
