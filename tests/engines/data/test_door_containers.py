"""The data door: containers, encodings and damaged files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from engines.data.door import (
    DataSource,
    ReadCounts,
    read_rows,
)
from engines.data.readers.row import TextRow
from recipes.problems import OperatorError
from tests.engines.data.door_rows import GOOD, put, rows_of, turns


def tables() -> tuple[Any, Any, Any]:
    """pyarrow, with its modules for Arrow and Parquet files."""
    return import_module("pyarrow"), import_module("pyarrow.ipc"), import_module("pyarrow.parquet")


ROWS = [{"prompt": f"q{number}", "completion": 'größer, "x"\nö'} for number in range(700)]


def write_as(folder: Path, kind: str, rows: Sequence[dict[str, Any]]) -> Path:
    file = folder / f"rows.{kind}"
    lines_ = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if kind == "json":
        file.write_text(json.dumps(rows, indent=1))
    elif kind in ("jsonl", "ndjson"):
        file.write_text(lines_)
    elif kind == "jsonl.gz":
        file.write_bytes(gzip.compress(lines_.encode()))
    elif kind in ("csv", "tsv"):
        import csv

        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["prompt", "completion"], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow, ipc, parquet = tables()
        table = pyarrow.Table.from_pylist(list(rows))
        if kind == "parquet":
            parquet.write_table(table, file, row_group_size=300)
        else:
            with ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
    return file


@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "jsonl.gz", "csv", "tsv", "parquet", "arrow"])
def test_every_container_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    expected = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in ROWS]
    assert [turns(row) for row in rows_of(write_as(tmp_path, kind, ROWS))] == expected


def test_rows_of_a_table_are_numbered_and_its_empty_cells_are_no_keys(tmp_path: Path) -> None:
    pyarrow, _, parquet = tables()
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]
    rows = [{"messages": plain, "images": None}, {"messages": [*plain[:1], {"role": "assistant", "content": ""}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert turns(rows_of(tmp_path / "a.parquet", on_bad_row="skip")[0]) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(OperatorError, match=r"a\.parquet: row 2: the assistant's turn 2 has no content"):
        rows_of(tmp_path / "a.parquet")


def test_a_json_array_may_be_named_jsonl_and_an_object_may_fill_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps([GOOD, GOOD], indent=2))
    counts = ReadCounts()
    found = list(read_rows(DataSource(tmp_path / "a.jsonl"), "", counts))
    assert [located.where.rpartition(":")[2] for located in found] == ["3", "15"]
    assert counts.formats == {str(tmp_path / "a.jsonl"): "messages in a JSON array"}
    (tmp_path / "b.json").write_text(json.dumps(GOOD, indent=2))
    assert len(rows_of(tmp_path / "b.json")) == 1
    (tmp_path / "c.json").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    assert len(rows_of(tmp_path / "c.json")) == 2
    (tmp_path / "e.json").write_text(json.dumps(GOOD) + "\n{oops\n" + json.dumps(GOOD))
    assert len(rows_of(tmp_path / "e.json", on_bad_row="skip")) == 2
    (tmp_path / "d.json").write_text("[]")
    assert rows_of(tmp_path / "d.json") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[\n{"text": "a"}\n{"text": "b"}]', ":3: not JSON: a comma is missing"),
        ('[\n{"text": "a"},\n{"text": "b"}', ":3: not JSON: the array does not end"),
        ('[\n{"text": "a"},\n{"text" "b"}]', ":3: not JSON: Expecting ':' delimiter"),
        ('[{"text": "a"}] x', ":1: not JSON: text follows the end"),
        ('[\n{"text": "a"},\n{"text": "b", "text": "c"}]', ":3: an object has the key text twice"),
    ],
)
def test_a_mistake_in_a_json_array_is_named_by_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OperatorError) as raised:
        rows_of(tmp_path / "a.json")
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", gzip.compress(b'{"text": "a"}', mtime=0), "packed with gzip"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b'{"text": "a"}', mtime=0), mtime=0), "packed with gzip"),
        ("a.json", b"PK\x03\x04", "a zip archive"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_no_data_under_any_name_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OperatorError, match=says):
        rows_of(tmp_path / name)


def test_a_column_without_a_name_as_pandas_writes_its_index_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text\n0,one\n1,two\n")
    assert [row.text for row in rows_of(tmp_path / "a.csv") if isinstance(row, TextRow)] == ["one", "two"]


def test_the_columns_in_a_hint_leave_out_no_context(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"instruction": "i", "context": "c", "response": "r"}')
    with pytest.raises(OperatorError) as raised:
        rows_of(tmp_path / "a.jsonl")
    assert '{instruction = "instruction", input = "context", output = "response"}' in raised.value.hint


def test_an_array_that_is_larger_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    rows = [{"text": f"{number} " + 'ä\n"' * 40_000} for number in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    assert [row.text for row in rows_of(tmp_path / "a.json") if isinstance(row, TextRow)] == [r["text"] for r in rows]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2,3\n", "3 cells; the header has 2"),
        (b"a,a\n1,2\n", "'a' is there twice"),
        (b"", "has no header"),
        (b'text\n"unclosed\n', "not CSV"),
    ],
)
def test_a_mistake_in_a_csv_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(OperatorError, match=r"a\.csv:") as raised:
        rows_of(tmp_path / "a.csv")
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("encoding", "mark", "noted"),
    [
        ("utf-8", b"\xef\xbb\xbf", "UTF-8 with a byte-order mark"),
        ("utf-16-le", b"\xff\xfe", "UTF-16-LE with a byte-order mark"),
        ("utf-16-be", b"\xfe\xff", "UTF-16-BE with a byte-order mark"),
        ("utf-16-le", b"", "UTF-16-LE"),
        ("utf-32-le", b"\xff\xfe\x00\x00", "UTF-32-LE with a byte-order mark"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_marks_of_encodings_are_read_and_said(
    tmp_path: Path, encoding: str, mark: bytes, noted: str, kind: str
) -> None:
    file = write_as(tmp_path, kind, ROWS[:3])
    file.write_bytes(mark + file.read_bytes().decode().replace("\n", "\r\n").encode(encoding))
    counts = ReadCounts()
    found = [located.row for located in read_rows(DataSource(file), "", counts)]
    assert [turns(row)[0] for row in found] == [("user", row["prompt"]) for row in ROWS[:3]]
    assert counts.encodings[str(file)] == f"{noted}, CRLF line ends"


def test_another_encoding_is_refused_by_line_until_the_recipe_names_it(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + json.dumps(GOOD, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(OperatorError, match=r"a\.jsonl:2: not UTF-8: byte 0xf6") as raised:
        rows_of(file)
    assert 'encoding = "latin-1"' in raised.value.hint
    assert turns(rows_of(file, encoding="latin-1")[1])[1] == ("assistant", "größer")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.gz"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    file = write_as(tmp_path, kind, ROWS)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OperatorError, match="rows"):
        rows_of(file)


def test_a_file_that_changes_while_it_is_read_ends_the_reading(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", *[GOOD] * 3)
    reading = read_rows(DataSource(file), "", ReadCounts())
    next(reading)
    with file.open("a") as more:
        more.write(json.dumps(GOOD) + "\n")
    with pytest.raises(OperatorError, match="changed while it was read"):
        list(reading)
