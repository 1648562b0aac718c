"""Documents from files of text, split once into train, val and test."""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifacts.data_folder import METADATA
from engines.data.documents import write_json
from engines.data.sources.documents import Report as Report
from engines.data.sources.documents import SourceFields, TextSource, document_bytes
from engines.data.sources.spool import DocumentSpool
from engines.inputs.source_tree import STANDARD_LIBRARY, LeftOutError, read_source
from recipes.problems import OperatorError

SHOWN_KINDS = 6
"""Suffixes of other files that a message names."""


@dataclass(frozen=True)
class FoundFile:
    """A file to include: the size of its text in UTF-8 bytes, and its SHA-256. Writing reads the text again."""

    file: Path
    size: int
    sha256: bytes


PIECES_OF_A_SPLIT = 10
"""Documents that the smallest split should have at least, where long texts can be divided."""
MIN_PIECE_BYTES = 512


def prepare_text(
    source: str,
    out: Path,
    *,
    fields: SourceFields | None = None,
    max_bytes: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 42,
    base: Path | None = None,
    work: Path | None = None,
    report: Report | None = None,
    phase: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a text folder into `out` and return its metadata.

    Args:
        source: a file, a folder, or "python-stdlib".
        out: an existing empty folder.
        fields: which files are read, and as what.
        max_bytes: most bytes of text, with documents in the order of their keyed hash; at least one document.
        val_fraction: share of the documents for val.
        test_fraction: share of the documents for test.
        seed: key of the split.
        base: folder for a relative `source`.
        work: folder for scratch; `out` by default.
        report: called with progress; an exception from it ends the work.
        phase: called with the name of the phase that begins.

    Raises:
        OperatorError: no source, no document, fewer documents than splits, or a row that is not a document.
    """
    fields = fields or SourceFields()
    enter_phase = phase or (lambda _name: None)
    enter_phase("reading sources")
    found = TextSource(source, fields, base)
    with DocumentSpool((work or out) / "documents.spool", seed, ordered=max_bytes is not None) as spool:
        limit = _read(found, fields, spool, min(filter(None, (val_fraction, test_fraction)), default=0.0), report)
        if over := spool.limit(max_bytes):
            found.left_out.counts["over_max_bytes"] = over
        if not len(spool):
            raise _no_documents(found, fields)
        spool.assign(val_fraction, test_fraction)
        enter_phase("writing documents")
        splits = spool.write(out, report)
        moved = spool.moved
    metadata: dict[str, Any] = {
        "format": 1,
        "kind": "text",
        "source": str(found.place),
        "python": platform.python_version() if source == STANDARD_LIBRARY else None,
        "seed": seed,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "include": list(fields.include),
        "exclude": list(fields.exclude),
        "source_format": fields.format,
        "columns": {"text": fields.text_column},
        "encoding": fields.encoding,
        "on_bad_row": fields.on_bad_row,
        "max_file_bytes": fields.max_file_bytes,
        "max_document_bytes": limit,
        "max_bytes": max_bytes,
        "splits": splits,
        "files": len(found.files),
        "divided": found.left_out.divided,
        "dropped": dict(sorted(found.left_out.counts.items())),
        "dropped_examples": dict(sorted(found.left_out.examples.items())),
        "other_kinds": dict(found.left_out.other_kinds.most_common()),
        "moved_to_fill_a_split": moved,
    }
    write_json(out / METADATA, metadata)
    return metadata


def _read(found: TextSource, fields: SourceFields, spool: DocumentSpool, share: float, report: Report | None) -> int:
    """Read the documents; returns the bytes of the longest one.

    A source is read again in smaller pieces if its longest text has more than the share of the smallest held-out split,
    because that split could not have its share; unless the recipe sets their length.
    """
    limit = document_bytes(fields)
    found.read(spool, limit, report)
    if fields.max_document_bytes is None and found.longest > max(spool.bytes * share, MIN_PIECE_BYTES) and share:
        limit = max(MIN_PIECE_BYTES, int(spool.bytes * share / PIECES_OF_A_SPLIT))
        spool.clear()
        found.read(spool, document_bytes(fields), report, prose=limit)
    return limit


def _no_documents(found: TextSource, fields: SourceFields) -> OperatorError:
    left_out = found.left_out
    return OperatorError(
        f"{found.place} has no usable documents ({dropped_text(left_out.counts, left_out.other_kinds)})",
        f"include is {', '.join(fields.include) or 'not set'}; check include, exclude and max_file_bytes",
    )


def dropped_text(dropped: Counter[str], other_kinds: Counter[str] | None = None) -> str:
    """The counts of files and rows left out, as text."""
    counts = [f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items())]
    counts += [f"{count} {suffix}" for suffix, count in (other_kinds or Counter()).most_common(SHOWN_KINDS)]
    return ", ".join(counts) or "nothing matched"


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
