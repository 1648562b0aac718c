"""The data door and bad rows: left out and counted, or all named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.data.door import (
    DataSource,
    ReadCounts,
    read_rows,
)
from engines.data.readers import lines
from recipes.problems import OperatorError
from tests.engines.data.bad_rows import problems_in
from tests.engines.data.door_rows import GOOD, put, rows_of


def test_bad_rows_are_left_out_and_counted_or_all_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines_ = [json.dumps(GOOD), "{oops", json.dumps(GOOD), '{"messages": []}', '{"messages": [], "messages": []}']
    file.write_text("\n".join(lines_))
    counts = ReadCounts()
    kept = list(read_rows(DataSource(file, on_bad_row="skip"), "", counts))
    assert [located.where for located in kept] == [f"{file}:1", f"{file}:3"]
    assert (counts.rows, counts.refused) == (5, 3)
    assert counts.examples[0].startswith(f"{file}:2: not JSON")
    assert counts.formats == {str(file): "messages in JSON Lines"}
    problems = problems_in(DataSource(file))
    assert [bad.where for bad in problems.found] == [f"{file}:2", f"{file}:4", f"{file}:5"]
    assert "the key messages twice" in counts.examples[2]


def test_one_odd_file_among_others_is_a_bad_row_and_an_odd_first_file_ends_the_reading(tmp_path: Path) -> None:
    for number, row in enumerate([GOOD, {"error": "timeout"}, GOOD]):
        put(tmp_path / f"{number}.json", row)
    counts = ReadCounts()
    assert len(list(read_rows(DataSource(tmp_path, on_bad_row="skip"), "train", counts))) == 2
    assert counts.skipped == {"a row of no known format": 1}
    put(tmp_path / "0.json", {"error": "timeout"})
    with pytest.raises(OperatorError, match=r"0\.json:1: no format that Cockpit knows"):
        rows_of(tmp_path, on_bad_row="skip")


def test_the_kinds_of_mistakes_are_counted_without_their_values(tmp_path: Path) -> None:
    bad = [{"messages": [GOOD["messages"][0], {"role": "robot", "content": f"{n}"}], "id": str(n)} for n in range(30)]
    counts = ReadCounts()
    assert list(read_rows(DataSource(put(tmp_path / "a.jsonl", *bad), on_bad_row="skip"), "", counts)) == []
    assert counts.skipped == {"an unknown role": 30}
    assert len(counts.examples) == 20


def test_a_line_that_is_too_long_is_named_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 4096)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps({"text": "x" * 3_000_000}) + "\n" + json.dumps(GOOD) + "\n")
    problems = problems_in(DataSource(file), "")
    assert [(bad.where, bad.reason) for bad in problems.found] == [(f"{file}:2", "a row is too long")]
    assert problems.counts.rows == 3
