"""Rows of any format as a messages folder: read once in a stream, then divided, counted and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engines.artifacts.data_folder import METADATA
from engines.data.documents import write_json
from engines.data.door import DataSource, ReadCounts, read_rows, splits_in
from engines.data.messages import shared_out
from engines.data.preparing.assign import LEFT_OUT, Assigned, SplitColumn, Splits, assign_rows
from engines.data.preparing.bands import bands_of
from engines.data.preparing.divide import SplitWish
from engines.data.preparing.duplicates import NearRepeats, Repeats, exact_repeats
from engines.data.preparing.room import refuse_without_room_to_divide, refuse_without_room_to_read
from engines.data.preparing.segments import ByPosition
from engines.data.preparing.sorted_rows import Sorter
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
    refuse_without_room_to_read(work, sum(file.stat().st_size for files in given.values() for file in files))
    spool = _spool(source, given, counts, work, options.seed, reported)
    if not len(spool):
        raise OperatorError(
            f"{source.place}: no rows ({_skipped_text(counts)})", "check format, columns and on_bad_row"
        )
    bands = bands_of(options.near_duplicate_similarity)[0] if options.near_duplicates != "ignore" else 0
    refuse_without_room_to_divide(out, spool, bands)
    enter_phase(f"dividing {len(spool)} rows of {_formats_text(counts)}")
    repeats = exact_repeats(spool)
    near = _near(spool, repeats, options, reported)
    left_out = [repeats.rows] if options.duplicates == "drop" else []
    if near is not None and options.near_duplicates == "drop":
        left_out.append(near.similar)
    own = [split for split in SPLITS if given.get(split)]
    similar = [repeats.rows] if near is None else [repeats.rows, near.first]
    assigned = assign_rows(spool, left_out, similar, own, options.wish, options.group_by)
    split, quotas = _limited(spool, assigned.split, options.max_examples)
    enter_phase("writing rows")
    splits = write_splits(spool, split, out, reported)
    spool.close()
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
    source: DataSource, given: dict[str, Any], counts: ReadCounts, folder: Path, seed: int, report: Report
) -> Spool:
    """Read the rows of every split, one at a time."""
    writer = SpoolWriter(folder, seed)
    for name in ("", *SPLITS):
        if name not in given:
            continue
        index = SPLITS.index(name) if name else UNSPLIT
        for located in read_rows(source, name, counts):
            writer.append(located.where, located.row, index)
            if not len(writer) % REPORT_ROWS:
                report(len(writer), None, "rows")
    spool = writer.close()
    report(len(spool), len(spool), "rows")
    return spool


def _near(spool: Spool, repeats: Repeats, options: RowOptions, report: Report) -> NearRepeats | None:
    if options.near_duplicates == "ignore":
        return None
    from engines.data.preparing.near_duplicates import near_repeats  # needs rensa, which other preparations do not

    return near_repeats(
        spool,
        repeats,
        options.near_duplicate_similarity,
        lambda done, total: report(done, total, "rows compared"),
    )


def _limited(spool: Spool, split: SplitColumn, limit: int | None) -> tuple[SplitColumn, dict[str, int]]:
    """At most `limit` rows, those with the lowest keyed hashes of each split; and the rows found in each."""
    found = dict(zip(SPLITS, split.rows, strict=False))
    quotas = shared_out(limit, found)
    if quotas == found:
        return split, found
    return SplitColumn(spool, _lowest(spool, split, list(quotas.values()))), found


def _lowest(spool: Spool, split: SplitColumn, quotas: list[int]) -> Iterator[Splits]:
    """The splits in chunks, where only a number of rows of each stay, those of the lowest order."""
    ordered, lowest = Sorter(spool.folder, 3), Sorter(spool.folder, 2)
    for (begin, facts), splits in zip(spool.facts(), split, strict=True):
        rows = np.flatnonzero(splits != LEFT_OUT)
        ordered.add(splits[rows], facts["order"][rows], rows + begin)
    left = np.array(quotas, dtype=np.int64)
    for index, _, row in ordered.stream():
        for number in range(len(SPLITS)):
            some = row[index == number][: left[number]]
            left[number] -= len(some)
            lowest.add(some, np.full(len(some), number))
    chosen, begin = ByPosition(lowest.stream()), 0
    for splits in split:
        yield np.where(chosen.mask(begin, begin + len(splits)), splits, np.uint8(LEFT_OUT)).astype(np.uint8)
        begin += len(splits)


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
        "where": [" ".join((one.path, one.comparison, json.dumps(one.value))) for one in source.where],
        "filtered": counts.filtered,
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


def _duplicates(options: RowOptions, repeats: Repeats, near: NearRepeats | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "exact": {
            "rows": len(repeats.rows),
            "across_given_splits": repeats.across_splits,
            "policy": options.duplicates,
        }
    }
    if near is not None:
        found["near"] = {
            "rows": len(near.similar),
            "across_given_splits": near.across_splits,
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
