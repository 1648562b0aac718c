"""Files of conversations as they come: empty, of one row, with other line ends, other encodings, and endless lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.data.door import DataSource, read_conversations
from engines.data.readers import json_stream, lines
from recipes.problems import OperatorError
from tests.engines.data.bad_rows import problems_in

ROW = '{"messages": [{"role": "user", "content": "f?"}, {"role": "assistant", "content": "größer"}]}'


def rows(folder: Path, content: bytes) -> list[str]:
    """The answers of a train split with this content."""
    (folder / "train.jsonl").write_bytes(content)
    return [row.answer for row in read_conversations(DataSource(folder), "train")]


@pytest.mark.parametrize(
    "content",
    [
        ROW.encode(),
        ROW.encode() + b"\r\n",
        b"\xef\xbb\xbf" + ROW.encode() + b"\n",
        b"\n\n  \n" + ROW.encode() + b"\n\n",
        ROW.encode("ascii", "backslashreplace").replace(b"\\xf6", b"\\u00f6").replace(b"\\xdf", b"\\u00df") + b"\n",
    ],
    ids=["no line end", "CRLF", "byte-order mark", "empty lines", "escapes"],
)
def test_one_row_is_read_however_its_line_ends_and_begins(tmp_path: Path, content: bytes) -> None:
    assert rows(tmp_path, content) == ["größer"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_rows(tmp_path: Path, content: bytes) -> None:
    assert rows(tmp_path, content) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (ROW.encode("latin-1"), "not UTF-8: byte 0xf6"),
        (ROW.encode("utf-16"), "not UTF-8"),
        (ROW.encode()[:-3], "not JSON"),
        (b'{"messages": []}', "the last turn must be the assistant's"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "no user turn"),
        (ROW.replace("assistant", "robot").encode(), "role — got 'robot'"),
        (ROW.replace("größer", " ").encode(), "the assistant's turn 2 has no content"),
        (ROW.replace('"größer"', "7").encode(), "got a number 7; allowed text"),
        (b"\0" * 30, "not JSON"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_whatever_is_before_it(tmp_path: Path, line: bytes, says: str) -> None:
    with pytest.raises(OperatorError, match=r"train\.jsonl:3: ") as caught:
        rows(tmp_path, ROW.encode() + b"\n\n" + line + b"\n" + ROW.encode() + b"\n")
    assert says in caught.value.message
    assert len(caught.value.message) < 1000


def test_a_row_of_many_megabytes_is_a_row(tmp_path: Path) -> None:
    text = "x" * (20 << 20)
    content = json.dumps({"messages": [{"role": "user", "content": "f?"}, {"role": "assistant", "content": text}]})
    assert [len(answer) for answer in rows(tmp_path, content.encode())] == [len(text)]


def test_equal_rows_are_each_a_row(tmp_path: Path) -> None:
    """Cockpit drops duplicates where it makes the questions; data that is given is trained as it is."""
    assert rows(tmp_path, (ROW + "\n").encode() * 3) == ["größer"] * 3


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "jsonl.gz", "parquet", "arrow"])
@given(data=st.data())
@settings(max_examples=15)
def test_any_bytes_in_a_data_file_give_rows_or_a_reason_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: st.DataObject
) -> None:
    sound = st.sampled_from([ROW.encode(), f"[{ROW}]".encode(), b"text\nonce\n", b"PAR1", b"ARROW1", b"\x1f\x8b\x08"])
    part = st.one_of(sound, st.binary(max_size=12), st.sampled_from([b"\n", b'"', b","]))
    parts = data.draw(st.lists(part, max_size=5))
    content = b"".join(parts)
    if ending.endswith(".gz") and data.draw(st.booleans()):
        content = gzip.compress(content)
    file = tmp_path_factory.mktemp("odd") / f"rows.{ending}"
    file.write_bytes(content)
    problems = problems_in(DataSource(file), "")
    assert all(len(bad.line) < 2000 for bad in problems.found)


def test_a_packed_file_that_unpacks_to_an_endless_line_is_refused_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 1 << 16)
    file = tmp_path / "train.jsonl.gz"
    file.write_bytes(gzip.compress(ROW.encode() + b"\n" + b"x" * (50 << 20)))
    reads: list[int] = []
    real = gzip.GzipFile.readline

    def readline(self: gzip.GzipFile, size: int = -1) -> bytes:
        line: bytes = real(self, size)
        reads.append(len(line))
        return line

    monkeypatch.setattr(gzip.GzipFile, "readline", readline)
    (bad,) = problems_in(DataSource(file), "").found
    assert bad.line.startswith(f"{file}:2: the row is longer than 64 KiB")
    assert max(reads) <= 1 << 20


def test_a_json_file_with_an_endless_value_is_refused_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "MAX_ROW_BYTES", 1 << 16)
    (tmp_path / "train.json").write_text('[\n{"text": "' + "x" * (5 << 20))
    with pytest.raises(OperatorError, match=r"train\.json:2: the row is longer than"):
        list(read_conversations(DataSource(tmp_path), "train"))
