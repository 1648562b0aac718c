"""Files of conversations as they come: empty, of one row, with other line ends, other encodings, and endless lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engines.data.door import DataSource, read_conversations
from recipes.problems import OperatorError

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
