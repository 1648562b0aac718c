"""Documents from files of text, split once into train, val and test."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifacts.data_folder import METADATA
from engines.data.documents import write_json
from engines.data.sources.documents import EXAMPLES, SourceFields, TextSource, document_bytes
from engines.data.sources.documents import Report as Report
from engines.data.sources.spool import DocumentSpool
from engines.data.split import SPLITS
from engines.inputs.mixture import FULL, SourceShare, shares_of, targets_of
from engines.inputs.source_tree import STANDARD_LIBRARY
from recipes.problems import OperatorError, printable

SHOWN_KINDS = 6
"""Suffixes of other files that a message names."""


PIECES_OF_A_SPLIT = 10
"""Documents that the smallest split should have at least, where long texts can be divided."""
MIN_PIECE_BYTES = 512


NearPairs = Callable[[Iterator[str], Path, Callable[[int, int], None]], Iterator[tuple[int, int]]]
"""Called with the documents' texts, a folder for scratch and a report of (done, total); gives pairs of documents."""


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """One of several sources.

    Attributes:
        place: a file, a folder, or "python-stdlib".
        share: its name, its weight, and how often it may be repeated.
        fields: which files are read, and as what.
        optional: whether it may be missing.
    """

    place: str
    share: SourceShare
    fields: SourceFields
    optional: bool = False


@dataclass
class _Read:
    """A source that was read: `limit` is the bytes of its longest document, `near` its near duplicates."""

    part: TextPart
    found: TextSource
    limit: int
    near: int = 0


def prepare_text(
    source: str | Sequence[TextPart],
    out: Path,
    *,
    fields: SourceFields | None = None,
    max_bytes: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 42,
    temperature: float = 1.0,
    near_duplicates: str = "ignore",
    near: NearPairs | None = None,
    base: Path | None = None,
    work: Path | None = None,
    report: Report | None = None,
    phase: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a text folder into `out` and return its metadata.

    Args:
        source: a file, a folder, or "python-stdlib"; or several sources with weights.
        out: an existing empty folder.
        fields: which files are read, and as what; of several sources, each has its own.
        max_bytes: most bytes of text, with documents in the order of their keyed hash; at least one document.
        val_fraction: share of the documents for val.
        test_fraction: share of the documents for test.
        seed: key of the split.
        temperature: flattens the weights of several sources.
        near_duplicates: ignore, keep or drop documents that share most of their words with another.
        near: finds them; see `engines.data.preparing.near_documents.near_pairs`.
        base: folder for a relative `source`.
        work: folder for scratch; `out` by default.
        report: called with progress; an exception from it ends the work.
        phase: called with the name of the phase that begins.

    Raises:
        OperatorError: no source, no document, fewer documents than splits, or a row that is not a document.
    """
    fields = fields or SourceFields()
    enter_phase = phase or (lambda _name: None)
    several = not isinstance(source, str)
    parts = (
        [TextPart(place=source, share=SourceShare("", None, 1.0), fields=fields)] if isinstance(source, str) else source
    )
    scratch = work or out
    fractions = (val_fraction, test_fraction)
    with DocumentSpool(scratch / "documents.spool", seed, ordered=several or max_bytes is not None) as spool:
        enter_phase("reading sources")
        read, missing = _read_all(parts, spool, fractions, report, base, several=several)
        if near is not None:
            enter_phase("comparing documents")
            _find_near(spool, read, near, scratch, near_duplicates == "drop", report)
        if not several and (over := spool.limit(max_bytes)):
            read[0].found.left_out.counts["over_max_bytes"] = over
        if not len(spool):
            raise _no_documents([one.found for one in read], fields)
        undivided = spool.assign(val_fraction, test_fraction)
        mixture = _mix(spool, [one.part.share for one in read], fractions, temperature, max_bytes) if several else {}
        enter_phase("writing documents")
        splits, counts = spool.write(out, report)
        moved = spool.moved
    metadata: dict[str, Any] = {
        "format": 1,
        "kind": "text",
        "source": None if several else str(read[0].found.place),
        "python": platform.python_version() if any(part.place == STANDARD_LIBRARY for part in parts) else None,
        "seed": seed,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "include": list(fields.include),
        "exclude": list(fields.exclude),
        "source_format": fields.format,
        "columns": {"text": fields.text_column},
        "encoding": fields.encoding,
        "on_bad_row": fields.on_bad_row,
        "split_by": fields.split_by,
        "clean": list(fields.clean),
        "cleaned": dict(sorted(sum((one.found.cleaned for one in read), Counter()).items())),
        "max_file_bytes": fields.max_file_bytes,
        "max_document_bytes": max(one.limit for one in read),
        "max_bytes": max_bytes,
        "near_duplicates": {
            "action": near_duplicates,
            "found": sum(one.near for one in read),
        },
        "splits": splits,
        **_left_out([one.found for one in read], several=several),
        "moved_to_fill_a_split": moved,
    }
    if several:
        metadata |= {
            "mixture_temperature": temperature,
            "sources": [
                _source_entry(one, mixture, number, counts[number], number in undivided)
                for number, one in enumerate(read)
            ],
            "missing_sources": [{"name": part.share.name, "path": part.place} for part in missing],
        }
    write_json(out / METADATA, metadata)
    return metadata


def _read_all(
    parts: Sequence[TextPart],
    spool: DocumentSpool,
    fractions: tuple[float, float],
    report: Report | None,
    base: Path | None,
    *,
    several: bool,
) -> tuple[list[_Read], list[TextPart]]:
    """Read the sources in order; returns them, and the optional ones that do not exist.

    Raises:
        OperatorError: a source is missing, or all of them; a source has no document.
    """
    read: list[_Read] = []
    missing: list[TextPart] = []
    share = min(filter(None, fractions), default=0.0)
    for part in parts:
        if part.optional and part.place != STANDARD_LIBRARY and not (base or Path()).joinpath(part.place).exists():
            missing.append(part)
            continue
        found = TextSource(part.place, part.fields, base, part.share.name)
        if several:
            spool.begin_source()
        before = len(spool)
        limit = _read(found, part.fields, spool, share, report)
        if several and len(spool) == before and not spool.duplicates:
            raise _no_documents([found], part.fields)
        read.append(_Read(part, found, limit))
    if not read:
        names = ", ".join(printable(part.place, 200) for part in missing)
        raise OperatorError(f"none of the sources exists: {names}", "install what the recipe names, or give a source")
    return read, missing


def _read(found: TextSource, fields: SourceFields, spool: DocumentSpool, share: float, report: Report | None) -> int:
    """Read the documents; returns the bytes of the longest one.

    A source is read again in smaller pieces if its longest text has more than the share of the smallest held-out split,
    because that split could not have its share; unless the recipe sets their length.
    """
    limit = document_bytes(fields)
    found.read(spool, limit, report)
    own = spool.source_bytes * share
    if fields.max_document_bytes is None and found.longest > max(own, MIN_PIECE_BYTES) and share:
        limit = max(MIN_PIECE_BYTES, int(own / PIECES_OF_A_SPLIT))
        spool.clear_source()
        found.read(spool, document_bytes(fields), report, prose=limit)
    return limit


def _find_near(
    spool: DocumentSpool, read: list[_Read], near: NearPairs, scratch: Path, drop: bool, report: Report | None
) -> None:
    """Find the near duplicates of all sources, and drop them or put each cluster into one split."""

    def compared(done: int, total: int) -> None:
        if report is not None:
            report(done, total, "documents")

    found = spool.near(near(spool.texts(), scratch, compared), drop=drop)
    for one, count in zip(read, found, strict=True):
        one.near = count
        if drop and count:
            one.found.left_out.counts["near_duplicate"] = count


def _mix(
    spool: DocumentSpool,
    wanted: list[SourceShare],
    fractions: tuple[float, float],
    temperature: float,
    max_bytes: int | None,
) -> dict[str, Any]:
    """Choose documents of each split until the sources have their shares.

    Held-out documents are never repeated. Returns the shares, and for each split the bytes that each source had and
    was to have.
    """
    held_out = dict(zip(("val", "test"), fractions, strict=True))
    sizes = {split: spool.sizes_of(split) for split in SPLITS}
    whole = [sum(sizes[split][number] for split in SPLITS) for number in range(len(wanted))]
    shares = shares_of(wanted, whole, temperature)
    targets = {}
    for split in SPLITS:
        part = held_out.get(split, 1 - sum(fractions))
        limit = float("inf") if max_bytes is None else max_bytes * part
        epochs = [one.epochs if split == "train" else min(one.epochs, 1.0) for one in wanted]
        targets[split] = targets_of(shares, sizes[split], epochs, limit)
        spool.mix(split, targets[split])
    return {"shares": shares, "sizes": sizes, "targets": targets}


def _source_entry(
    one: _Read, mixture: dict[str, Any], number: int, counts: dict[str, dict[str, int]], undivided: bool
) -> dict[str, Any]:
    """What metadata.json says about one of several sources: what the recipe wants, what there was, and what it got."""
    share, size, target = (mixture["shares"][number], *(mixture[key]["train"] for key in ("sizes", "targets")))
    total = sum(target)
    used = counts["train"]["bytes"]
    allowed = one.part.share.epochs * size[number]
    return {
        "name": one.part.share.name,
        "path": str(one.found.place),
        "weight": one.part.share.weight,
        "epochs_allowed": one.part.share.epochs,
        "share": share,
        "bytes": size[number],
        "wanted_bytes": round(target[number]),
        "mixed_bytes": used,
        "mixed_share": used / total if total else 0.0,
        "epochs": used / size[number] if size[number] else 0.0,
        "limits_the_mixture": bool(size[number]) and target[number] >= allowed * (1 - FULL),
        "undivided": undivided,
        "splits": counts,
        "files": len(one.found.files),
        "divided": one.found.left_out.divided,
        "max_document_bytes": one.limit,
        "duplicates_of_earlier_sources": one.found.across,
        "near_duplicates": one.near,
        "dropped": dict(sorted(one.found.left_out.counts.items())),
        "other_kinds": dict(one.found.left_out.other_kinds.most_common()),
    }


def _left_out(found: list[TextSource], *, several: bool) -> dict[str, Any]:
    """What was left out of all sources, with the name of the source before the names of its files."""
    examples: dict[str, list[str]] = {}
    for one in found:
        for reason, names in one.left_out.examples.items():
            examples.setdefault(reason, []).extend(one.named(name) if several else name for name in names)
    return {
        "files": sum(len(one.files) for one in found),
        "divided": sum(one.left_out.divided for one in found),
        "dropped": dict(sorted(sum((one.left_out.counts for one in found), Counter()).items())),
        "dropped_examples": {reason: names[:EXAMPLES] for reason, names in sorted(examples.items())},
        "other_kinds": dict(sum((one.left_out.other_kinds for one in found), Counter()).most_common()),
    }


def _no_documents(found: list[TextSource], fields: SourceFields) -> OperatorError:
    counts: Counter[str] = sum((one.left_out.counts for one in found), Counter())
    others: Counter[str] = sum((one.left_out.other_kinds for one in found), Counter())
    places = ", ".join(printable(str(one.place), 400) for one in found)
    return OperatorError(
        f"{places} has no usable documents ({dropped_text(counts, others)})", _what_to_do(counts, fields)
    )


def _what_to_do(counts: Counter[str], fields: SourceFields) -> str:
    """How a source without documents gets some, by the reason that left out most of them."""
    reason = counts.most_common(1)[0][0] if counts else ""
    hints = {
        "not_utf8": "set encoding if the files are text in another encoding, such as latin-1",
        "binary": "give files of text: these contain bytes that no text has",
        "empty": "give files with text: these are empty",
        "too_large": f"raise max_file_bytes; it is {fields.max_file_bytes}",
    }
    include = ", ".join(fields.include) or "not set"
    return hints.get(reason, f"include is {include}; check include, exclude and max_file_bytes")


def dropped_text(dropped: Counter[str], other_kinds: Counter[str] | None = None) -> str:
    """The counts of files and rows left out, as text."""
    counts = [f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(dropped.items())]
    counts += [f"{count} {suffix}" for suffix, count in (other_kinds or Counter()).most_common(SHOWN_KINDS)]
    return ", ".join(counts) or "nothing matched"
