"""Plain text files are used as held-out text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.data.plain_text import BLOCK_CHARACTERS, LONGEST_LINE, plain_blocks
from exporters.proof.parity_data import read_calibration_data, read_parity_data
from recipes.problems import OperatorError

WORDS = "the quick brown fox jumps over the lazy dog\n"


class Tokenizer:
    """A token is a word."""

    def __call__(self, text: str, **_options: object) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}


@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(1, 60))
def test_blocks_are_the_file(tmp_path_factory: pytest.TempPathFactory, text: str, times: int) -> None:
    file = tmp_path_factory.mktemp("text") / "a.txt"
    whole = text.replace("\0", "") * times
    file.write_bytes(whole.encode())
    blocks = list(plain_blocks(file))
    joined = "".join(blocks)
    assert joined == whole or (whole.startswith(joined) and not whole[len(joined) :].strip())
    assert all(len(block) < BLOCK_CHARACTERS + LONGEST_LINE for block in blocks)


def test_a_folder_gives_its_text_files_by_name_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "b" / ".git").mkdir(parents=True)
    (tmp_path / "b" / "two.py").write_text("two")
    (tmp_path / "b" / ".git" / "config").write_text("hidden")
    (tmp_path / "a.md").write_text("onè")
    (tmp_path / "c.bin").write_bytes(b"GGUF\0\0\0")
    (tmp_path / "d.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "e.txt").touch()
    os.mkfifo(tmp_path / "f.txt")
    (tmp_path / "g").symlink_to(tmp_path)
    assert list(plain_blocks(tmp_path)) == ["onè", "two"]


def test_one_file_serves_comparison_and_importance_with_different_texts(tmp_path: Path) -> None:
    file = tmp_path / "calibration.txt"
    file.write_text("".join(f"{number} {WORDS}" for number in range(600)))
    compared = read_parity_data(file, Tokenizer(), positions=500, max_length=64)
    assert (compared.source, compared.split) == ("text files", "")
    assert compared.positions >= 500
    weighed = read_calibration_data(file, Tokenizer(), tokens=1000, max_length=64, besides=compared)
    assert weighed.positions >= 1000
    assert not {sample.text for sample in weighed.samples} & {sample.text for sample in compared.samples}


def test_a_prepared_folder_is_never_read_as_plain_text(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"path": "x", "text": WORDS}) + "\n")
    with pytest.raises(OperatorError, match="neither its test nor its val split"):
        read_parity_data(tmp_path, Tokenizer(), positions=10, max_length=8)


@pytest.mark.parametrize("row", ["{}", "[]", '{"text": 3}', "{", "[" * 100_000])
def test_a_row_that_is_not_a_document_is_located(tmp_path: Path, row: str) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"path": "x", "text": WORDS}) + "\n" + row + "\n")
    with pytest.raises(OperatorError, match=r"test\.jsonl:2: not a document"):
        read_parity_data(tmp_path, Tokenizer(), positions=1000, max_length=8)


def test_a_place_without_text_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0\1")
    for place in (tmp_path, tmp_path / "x.bin"):
        with pytest.raises(OperatorError, match="contains no text; allowed the output of a prepare stage, a text file"):
            read_parity_data(place, Tokenizer(), positions=10, max_length=8)


def test_a_message_about_default_text_names_the_standard_library() -> None:
    class Speechless:
        def __call__(self, _text: str, **_options: object) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(OperatorError, match=r"^Python's standard library: "):
        read_parity_data(None, Speechless(), positions=10, max_length=64)
