"""Rows of any format as a messages folder: read once in a stream, then divided, counted and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.artifacts.data_folder import METADATA
from engines.data.documents import write_json
from engines.data.door import DataSource, ReadCounts, read_rows, splits_in
from engines.data.messages import shared_out
from engines.data.preparing.assign import LEFT_OUT, Assigned, assign_rows
from engines.data.preparing.divide import SplitWish
from engines.data.preparing.duplicates import Repeats, exact_repeats, kept_before
from engines.data.preparing.groups import Groups
from engines.data.preparing.split_files import write_splits
from engines.data.preparing.spool import UNSPLIT, Spool, SpoolWriter
from engines.data.preparing.statistics_page import STATISTICS, statistics_page
from engines.data.split import SPLITS
from engines.data.text import Report
from engines.files import write_text
from recipes.problems import OperatorError

FORMAT = 1
REPORT_ROWS = 512
"""Rows between two reports while the data is read."""


@dataclass(frozen=True)
class RowOptions:
    """What is done with the rows; the fields of the recipe of the same names."""

    wish: SplitWish = field(default_factory=SplitWish)
    group_by: Sequence[str] = ("group", "prompt")
    duplicates: str = "keep"
    near_duplicates: str = "ignore"
    near_duplicate_similarity: float = 0.8
    max_examples: int | None = None
    seed: int = 42


@dataclass(frozen=True)
class _Near:
    """Similar rows: for each row the first of its cluster, which is also that of the rows that repeat it exactly; and
    the number of rows that were not compared with all candidates."""

    first: npt.NDArray[np.int64]
    not_compared: int = 0


def prepare_rows(
    source: DataSource,
    counts: ReadCounts,
    out: Path,
    work: Path,
    options: RowOptions,
    *,
    made_by: dict[str, Any] | None = None,
    report: Report | None = None,
    phase: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a folder of splits into `out` and return its metadata.

    Args:
        source: where the rows are, and how they are read.
        counts: is filled while the rows are read.
        out: an existing empty folder.
        work: an existing folder for scratch.
        options: what is done with the rows.
        made_by: the record of the command that made the data, for the metadata.
        report: called with progress; an exception from it ends the work.
        phase: called with the name of the phase that begins.

    Raises:
        OperatorError: a row is refused, there are no rows, or they cannot be divided as requested.
    """
    enter_phase = phase or (lambda _name: None)
    reported = report or (lambda _done, _total, _unit: None)
    enter_phase("reading rows")
    given = splits_in(source)
    spool = _spool(source, given, counts, work / "rows.spool", options.seed, reported)
    if not len(spool):
        raise OperatorError(
            f"{source.place}: no rows ({_skipped_text(counts)})", "check format, columns and on_bad_row"
        )
    enter_phase(f"dividing {len(spool)} rows of {_formats_text(counts)}")
    repeats = exact_repeats(spool)
    kept = ~repeats.repeated if options.duplicates == "drop" else np.ones(len(spool), dtype=bool)
    near = _near(spool, repeats, options, work, reported)
    if near is not None and options.near_duplicates == "drop":
        kept &= near.first == repeats.first
    similar = [] if near is None else _pairs(near.first)
    own = [split for split in SPLITS if given.get(split)]
    assigned = assign_rows(spool, kept, similar, own, options.wish, options.group_by)
    split, quotas = _limited(spool, assigned.split, options.max_examples)
    enter_phase("writing rows")
    splits = write_splits(spool, split, out, reported)
    spool.file.unlink()
    if not splits["train"]["examples"]:
        raise OperatorError(f"{source.place}: the train split has no rows", "give more data, or other splits")
    metadata = {
        **_origin(source, counts, made_by),
        "row_kind": spool.kind,
        "duplicates": _duplicates(options, repeats, near),
        "groups": {"by": list(options.group_by), **assigned.groups},
        "split": _division(options, assigned, own),
        "max_examples": options.max_examples,
        "found": quotas,
        "splits": splits,
    }
    write_json(out / METADATA, metadata)
    write_text(out / STATISTICS, statistics_page(metadata))
    return metadata


def _spool(
    source: DataSource, given: dict[str, Any], counts: ReadCounts, file: Path, seed: int, report: Report
) -> Spool:
    """Read the rows of every split, one at a time."""
    writer = SpoolWriter(file, seed)
    try:
        for name in ("", *SPLITS):
            if name not in given:
                continue
            index = SPLITS.index(name) if name else UNSPLIT
            for located in read_rows(source, name, counts):
                writer.append(located.where, located.row, index)
                if not len(writer.spool) % REPORT_ROWS:
                    report(len(writer.spool), None, "rows")
    finally:
        spool = writer.close()
    report(len(spool), len(spool), "rows")
    return spool


def _near(spool: Spool, repeats: Repeats, options: RowOptions, work: Path, report: Report) -> _Near | None:
    if options.near_duplicates == "ignore":
        return None
    from engines.data.preparing.near_duplicates import join_similar  # needs rensa, which other preparations do not

    order = kept_before(repeats.given)
    candidates = order[~repeats.repeated[order]]
    rank = np.empty(len(spool), dtype=np.int64)
    rank[order] = np.arange(len(spool))
    clusters = Groups(len(spool))

    def join(one: int, other: int) -> None:
        clusters.join(int(rank[one]), int(rank[other]))

    not_compared = join_similar(
        spool,
        candidates,
        options.near_duplicate_similarity,
        work,
        join,
        lambda done, total: report(done, total, "rows compared"),
    )
    return _Near(order[clusters.heads()][rank][repeats.first], not_compared)


def _pairs(first: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    later = np.flatnonzero(first != np.arange(len(first)))
    return list(zip(first[later].tolist(), later.tolist(), strict=True))


def _limited(
    spool: Spool, split: npt.NDArray[np.uint8], limit: int | None
) -> tuple[npt.NDArray[np.uint8], dict[str, int]]:
    """At most `limit` rows, those with the lowest keyed hashes of each split; and the rows found in each."""
    found = {name: int(np.count_nonzero(split == index)) for index, name in enumerate(SPLITS)}
    limited = split.copy()
    order = np.frombuffer(spool.contents, dtype=np.uint64)[1::2]
    for index, (name, quota) in enumerate(shared_out(limit, found).items()):
        if quota < found[name]:
            rows = np.flatnonzero(split == index)
            limited[rows[np.argsort(order[rows], kind="stable")[quota:]]] = LEFT_OUT
    return limited, found


def _origin(source: DataSource, counts: ReadCounts, made_by: dict[str, Any] | None) -> dict[str, Any]:
    """Where the rows came from and how they were read; the same for the same data, wherever a command's output lies."""
    return {
        "format": FORMAT,
        "kind": "messages",
        "data": None if made_by else str(source.place),
        "command": made_by,
        "formats": {words: _name(source, file) for file, words in reversed(counts.formats.items())},
        "encodings": {_name(source, file): words for file, words in counts.encodings.items()},
        "files": counts.files,
        "columns": dict(source.columns),
        "ignore_keys": list(source.ignore_keys),
        "on_bad_row": source.on_bad_row,
        "rows": counts.rows - counts.refused,
        "skipped": dict(sorted(counts.skipped.items())),
        "skipped_examples": [line.replace(f"{source.place.parent}/", "") for line in counts.examples],
        "unused_columns": dict(sorted(counts.unused_columns.items())),
        "ignored_keys": dict(sorted(counts.ignored_keys.items())),
    }


def _name(source: DataSource, file: str) -> str:
    """A file of the data by its path inside the place; the name of the place itself if that is the file."""
    path = Path(file)
    return path.name if path == source.place else path.relative_to(source.place).as_posix()


def _formats_text(counts: ReadCounts) -> str:
    return " and ".join(dict.fromkeys(counts.formats.values()))


def _duplicates(options: RowOptions, repeats: Repeats, near: _Near | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "exact": {
            "rows": repeats.count,
            "across_given_splits": repeats.across_splits,
            "policy": options.duplicates,
        }
    }
    if near is not None:
        similar = near.first != repeats.first
        found["near"] = {
            "rows": int(np.count_nonzero(similar)),
            "across_given_splits": int(np.count_nonzero(similar & (repeats.given != repeats.given[near.first]))),
            "policy": options.near_duplicates,
            "similarity": options.near_duplicate_similarity,
            "not_compared_with_all": near.not_compared,
        }
    return found


def _division(options: RowOptions, assigned: Assigned, given: list[str]) -> dict[str, Any]:
    divided = bool(assigned.wanted)
    wish = options.wish
    held_out = (("val", wish.val_fraction, wish.val_rows), ("test", wish.test_fraction, wish.test_rows))
    missing = {name: share for name, share, rows in held_out if share and rows is None and name not in given}
    return {
        "method": assigned.method,
        "rule": "train and val rounded down, test gets the rest" if divided else None,
        "val_fraction": wish.val_fraction if divided and wish.val_rows is None else None,
        "test_fraction": wish.test_fraction if divided and wish.test_rows is None else None,
        "val_rows": wish.val_rows,
        "test_rows": wish.test_rows,
        "seed": options.seed,
        "wanted": assigned.wanted,
        "deviation": assigned.deviation,
        "train_rows_of_held_out_groups": assigned.shared_rows,
        "given": [] if divided else given,
        "unused_shares": {} if divided else missing,
    }


def _skipped_text(counts: ReadCounts) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.skipped.items())) or "nothing was found"
