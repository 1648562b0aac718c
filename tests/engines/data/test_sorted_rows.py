"""Numbers of rows are sorted, grouped and joined on disk: the same as in memory, whatever the size of a run."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from engines.data.door import DataSource, ReadCounts
from engines.data.preparing import assign, near_duplicates, sorted_rows, spool
from engines.data.preparing.divide import SplitWish
from engines.data.preparing.groups import Edges
from engines.data.preparing.rows import RowOptions, prepare_rows
from engines.data.preparing.segments import totals
from engines.data.preparing.sorted_rows import Sorter
from recipes.problems import OperatorError
from tests.engines.data.test_near_duplicates import texts
from tests.engines.data.test_preparing import TENTHS, prepared, talk, write_lines
from tests.engines.small_corpora import fresh


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs, chunks and caches of a few rows, so that a hundred rows are many of them."""
    for module, name, value in (
        (sorted_rows, "RUN_ROWS", 16), (sorted_rows, "FAN_IN", 3), (sorted_rows, "MERGE_ROWS", 64),
        (sorted_rows, "BLOCK_ROWS", 4),
        (spool, "CHUNK_ROWS", 13), (assign, "CHUNK_ROWS", 13), (spool, "BUFFER_BYTES", 500),
        (near_duplicates, "NOTED_PAIRS", 7), (near_duplicates, "PAGE_ROWS", 8), (near_duplicates, "MAX_PAGES", 2),
        (near_duplicates, "CACHED_SHINGLES", 50), (near_duplicates, "SHINGLES_AT_ONCE", 200),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize(("columns", "most"), [(1, 5), (2, 5), (3, 3), (2, 2**63)])
@pytest.mark.parametrize("unique", [False, True])
def test_rows_are_sorted_in_any_number_of_runs(tmp_path: Path, columns: int, most: int, unique: bool) -> None:
    rows = np.random.default_rng(columns).integers(0, most, (columns, 500), dtype=np.uint64)
    wanted = sorted(map(tuple, rows.T.tolist()))
    sorter = Sorter(tmp_path, columns, unique=unique)
    for begin in range(0, 500, 21):
        sorter.add(*rows[:, begin : begin + 21])
    table = sorter.table()
    for _ in range(2):
        found = [tuple(row) for chunk in table for row in chunk.T.tolist()]
        assert found == (sorted(set(wanted)) if unique else wanted)
    assert not os.listdir(tmp_path)


@pytest.mark.usefixtures("small_runs")
def test_sums_of_a_key_continue_from_chunk_to_chunk(tmp_path: Path) -> None:
    keys = np.repeat(np.arange(4, dtype=np.uint64), [1, 60, 2, 90])
    sorter = Sorter(tmp_path, 2)
    sorter.add(keys, np.arange(len(keys), dtype=np.uint64))
    found = np.concatenate([np.stack(part) for part in totals(sorter.stream())], axis=1).T.tolist()
    assert found == [[key, int((keys == key).sum()), int(np.flatnonzero(keys == key).sum())] for key in range(4)]


@pytest.mark.usefixtures("small_runs")
@pytest.mark.parametrize("pairs", [0, 40, 120, "chain"])
def test_groups_are_connected_components_with_the_first_row_as_head(tmp_path: Path, pairs: int | str) -> None:
    rng = np.random.default_rng(1)
    chain = list(pairwise(rng.permutation(100).tolist()))
    edges = chain if isinstance(pairs, str) else rng.integers(0, 100, (pairs, 2)).tolist()
    head = list(range(100))
    for one, other in edges:
        joined = {head[one], head[other]}
        head = [min(joined) if of in joined else of for of in head]
    found = Edges(tmp_path)
    found.join(*np.array(edges, dtype=np.uint64).reshape(-1, 2).T)
    heads = {row: first for chunk in found.heads() for row, first in chunk.T.tolist()}
    assert heads == {row: first for row, first in enumerate(head) if row != first}


def rows_of_all_kinds(count: int) -> list[dict[str, Any]]:
    """Some repeat another, many are similar, and most share a question or a group with a few others."""
    every = texts(count * 7 // 8)
    return [
        talk(f"q{n // 2}", every[n % len(every)], **({"group": f"g{n // 3}"} if n % 5 == 0 else {}))
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"near_duplicates": "keep", "near_duplicate_similarity": 0.9},
        {"near_duplicates": "drop", "duplicates": "drop", "group_by": ()},
        {"group_by": ("group",), "max_examples": 40},
    ],
)
def test_the_size_of_runs_changes_no_byte(
    tmp_path: Path, request: pytest.FixtureRequest, options: dict[str, Any]
) -> None:
    file = write_lines(tmp_path / "d.jsonl", rows_of_all_kinds(200))
    whole = prepared(file, tmp_path / "a", **options)
    request.getfixturevalue("small_runs")
    small = prepared(file, tmp_path / "b", **options)
    assert small.metadata == whole.metadata
    assert small.rows == whole.rows


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (sorted_rows, "RUN_ROWS", 128), (sorted_rows, "FAN_IN", 4), (sorted_rows, "MERGE_ROWS", 256),
        (sorted_rows, "BLOCK_ROWS", 16), (spool, "CHUNK_ROWS", 128), (assign, "CHUNK_ROWS", 128),
        (spool, "BUFFER_BYTES", 5000),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    peaks: list[int] = []
    for count in (400, 400, 2400, 2400):  # the first fills caches; other threads may allocate meanwhile, so one more
        rows = [talk(f"question {n}", "a" * 40, group=f"{n // 2}") for n in range(count)]
        file = write_lines(tmp_path / "d.jsonl", rows)
        out, work = fresh(tmp_path / f"out{len(peaks)}"), fresh(tmp_path / f"work{len(peaks)}")
        tracemalloc.start()
        prepare_rows(DataSource(file), ReadCounts(), out, work, RowOptions(TENTHS))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert min(peaks[2:]) < peaks[1] + 48 * 1000  # half of the records of the rows would be more


def test_scratch_files_have_no_name_that_a_killed_process_could_leave(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "d.jsonl", rows_of_all_kinds(100))
    out, work = fresh(tmp_path / "out"), fresh(tmp_path / "work")
    seen: list[list[str]] = []
    options = RowOptions(TENTHS, near_duplicates="keep")
    prepare_rows(DataSource(file), ReadCounts(), out, work, options, report=lambda *_: seen.append(os.listdir(work)))
    assert seen
    assert not any(seen)


class Disk(NamedTuple):
    free: int


@pytest.mark.parametrize(("free", "words"), [(1, "of data, as rows and as splits need"), (66 * 2**20, "100 rows of")])
def test_too_little_disk_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, words: str
) -> None:
    file = write_lines(tmp_path / "d.jsonl", [talk(f"q{n}", "a" * 4000) for n in range(100)])
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Disk(free))
    if words.startswith("100"):
        monkeypatch.setattr("engines.data.preparing.room.SORTED_BYTES", 10**6)
    with pytest.raises(OperatorError, match=words):
        prepared(file, tmp_path, wish=SplitWish())
