"""Documents from a source tree, split once into train, val and test."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engines.artifacts.data_folder import METADATA
from engines.data.documents import Document, split_file, write_json
from engines.data.split import SPLITS, Assignment, assign_splits, keyed_fraction
from engines.inputs.source_tree import STANDARD_LIBRARY, LeftOutError, read_source, source_folder, walk_sources
from recipes.problems import OperatorError

Report = Callable[[float, float | None, str], None]
"""Called with (done, total, unit); an exception from it ends the work."""


@dataclass(frozen=True)
class FoundFile:
    """A file to include: the size of its text in UTF-8 bytes, and its SHA-256. Writing reads the text again."""

    file: Path
    size: int
    sha256: bytes


@dataclass
class SourceScan:
    """The files of a source by their path inside it, and the counts of files left out, by reason."""

    files: dict[str, FoundFile] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


def scan_source(
    folder: Path,
    *,
    include: Sequence[str] = ("*.py",),
    exclude: Sequence[str] = (),
    max_file_bytes: int = 1_048_576,
    report: Report | None = None,
) -> SourceScan:
    """Read every file of a tree once and decide which to include; of files with the same text, the first path stays."""
    scan = SourceScan()
    found = sorted(walk_sources(folder, include, exclude, scan.dropped))
    seen: set[bytes] = set()
    for done, (inside, file) in enumerate(found, start=1):
        try:
            text = read_source(file, max_file_bytes).encode()
            digest = hashlib.sha256(text).digest()
            if digest in seen:
                raise LeftOutError("duplicate")
            seen.add(digest)
            scan.files[inside] = FoundFile(file, len(text), digest)
        except LeftOutError as reason:
            scan.dropped[str(reason)] += 1
        if report is not None:
            report(done, len(found), "files")
    return scan


def prepare_text(
    source: str,
    out: Path,
    *,
    include: Sequence[str] = ("*.py",),
    exclude: Sequence[str] = (),
    max_file_bytes: int = 1_048_576,
    max_bytes: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 42,
    base: Path | None = None,
    report: Report | None = None,
    phase: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a text folder into `out` and return its metadata.

    Args:
        source: a folder, or "python-stdlib".
        out: an existing empty folder.
        include: patterns on file names.
        exclude: patterns on paths inside the source.
        max_file_bytes: larger files are left out.
        max_bytes: most bytes of text, with files in the order of their keyed hash; at least one file.
        val_fraction: share of the documents for val.
        test_fraction: share of the documents for test.
        seed: key of the split.
        base: folder for a relative `source`.
        report: called with progress; an exception from it ends the work.
        phase: called with the name of the phase that begins.

    Raises:
        OperatorError: no folder, no document, or fewer documents than splits.
    """
    folder = source_folder(source, base)
    enter_phase = phase or (lambda _name: None)
    enter_phase("reading sources")
    scan = scan_source(folder, include=include, exclude=exclude, max_file_bytes=max_file_bytes, report=report)
    limit_bytes(scan, max_bytes, seed)
    if not scan.files:
        raise OperatorError(
            f"{folder} has no usable documents ({dropped_text(scan.dropped)})",
            f"include is {', '.join(include)}; check include, exclude and max_file_bytes",
        )
    assignment = assign_splits(scan.files, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    enter_phase("writing documents")
    splits = _write_splits(out, scan, assignment, max_file_bytes, report)
    metadata: dict[str, Any] = {
        "format": 1,
        "kind": "text",
        "source": str(folder),
        "python": platform.python_version() if source == STANDARD_LIBRARY else None,
        "seed": seed,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "include": list(include),
        "exclude": list(exclude),
        "max_file_bytes": max_file_bytes,
        "max_bytes": max_bytes,
        "splits": splits,
        "dropped": dict(sorted(scan.dropped.items())),
        "moved_to_fill_a_split": assignment.moved,
    }
    write_json(out / METADATA, metadata)
    return metadata


def limit_bytes(scan: SourceScan, max_bytes: int | None, seed: int) -> None:
    """Keep files in the order of their keyed hash until the next would exceed `max_bytes`; count the rest."""
    if max_bytes is None:
        return
    total = 0
    full = False
    for name in sorted(scan.files, key=lambda name: (keyed_fraction(seed, name, "order"), name)):
        size = scan.files[name].size
        full = full or (total > 0 and total + size > max_bytes)
        if full:
            del scan.files[name]
            scan.dropped["over_max_bytes"] += 1
        total += size


def dropped_text(dropped: Counter[str]) -> str:
    """The counts of files left out, as text."""
    if not dropped:
        return "nothing matched"
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items()))


def reread(found: FoundFile, max_file_bytes: int) -> str:
    """The text of a scanned file.

    Raises:
        OperatorError: the text has changed since the scan.
    """
    try:
        text = read_source(found.file, max_file_bytes)
    except LeftOutError:
        text = ""
    if hashlib.sha256(text.encode()).digest() != found.sha256:
        raise OperatorError(f"{found.file} changed while the corpus was being prepared", "resume the run")
    return text


def _write_splits(
    out: Path, scan: SourceScan, assignment: Assignment, max_file_bytes: int, report: Report | None
) -> dict[str, dict[str, Any]]:
    encoder = msgspec.json.Encoder()
    done = 0
    splits = {}
    for split in SPLITS:
        names = assignment.names(split)
        digest = hashlib.sha256()
        with split_file(out, split).open("wb") as lines:
            for name in names:
                line = encoder.encode(Document(name, reread(scan.files[name], max_file_bytes))) + b"\n"
                lines.write(line)
                digest.update(line)
                done += 1
                if report is not None:
                    report(done, len(scan.files), "documents")
        size = sum(scan.files[name].size for name in names)
        splits[split] = {"documents": len(names), "bytes": size, "sha256": digest.hexdigest()}
    return splits
