"""Untrusted GGUF files are read safely."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest

from engines.llama.gguf_file import (
    Value,
    padded,
    read_gguf,
)
from engines.llama.gguf_write import NewTensor, pack_text, text_value, uint32_value, write_header
from recipes.problems import OperatorError

KEYS = {
    "general.architecture": text_value("llama"),
    "llama.block_count": uint32_value(2),
    "words": Value(9, struct.pack("<IQ", 8, 2) + pack_text("a") + pack_text("é"), None),
}


def gguf_bytes(tensors: list[NewTensor] | None = None, keys: dict[str, Value] | None = None) -> bytes:
    made = tensors if tensors is not None else [NewTensor("a", (32, 2), 0, 256), NewTensor("b.weight", (32,), 8, 34)]
    file = io.BytesIO()
    write_header(file, KEYS if keys is None else keys, made)
    for tensor in made:
        file.write(bytes(padded(tensor.bytes)))
    return file.getvalue()


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(OperatorError) as caught:
        read_gguf(path)
    assert "hostile.gguf" in caught.value.message
    return caught.value.message


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes())
    file = read_gguf(path)
    assert file.scalar("general.architecture") == "llama"
    assert file.scalar("llama.block_count") == 2
    assert file.scalar("words", "a list") == "a list"
    assert file.keys["words"].raw == KEYS["words"].raw
    assert [(t.name, t.rows, t.columns, t.matrix) for t in file.tensors.values()] == [
        ("a", 2, 32, True),
        ("b.weight", 1, 32, False),
    ]
    assert file.tensors["b.weight"].start - file.tensors["a"].start == 256


def test_the_gguf_package_reads_what_was_written(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes())
    reader = gguf.GGUFReader(path)
    assert [(t.name, t.tensor_type.name, t.n_bytes) for t in reader.tensors] == [
        ("a", "F32", 256),
        ("b.weight", "Q8_0", 34),
    ]
    assert reader.get_field("words").contents() == ["a", "é"]


def test_counts_lengths_and_offsets_are_checked(tmp_path: Path) -> None:
    data = gguf_bytes()
    huge = struct.pack("<Q", 2**60)
    assert "does not begin with the bytes GGUF" in refusal(tmp_path, b"PK" + data[2:])
    assert "version" in refusal(tmp_path, data[:4] + struct.pack("<I", 9) + data[8:])
    assert "tensors and 3 keys" in refusal(tmp_path, data[:8] + huge + data[16:])
    assert "keys in" in refusal(tmp_path, data[:16] + huge + data[24:])
    assert "name of" in refusal(tmp_path, data[:24] + huge + data[32:])
    text = data.index(b"llama\x11") - 8
    assert "general.architecture" in refusal(tmp_path, data[:text] + huge + data[text + 8 :])
    words = data.index(b"words") + 5
    assert "array of" in refusal(tmp_path, data[: words + 8] + huge + data[words + 16 :])
    assert "type 77" in refusal(tmp_path, data[:words] + struct.pack("<I", 77) + data[words + 4 :])
    assert "UTF-8" in refusal(tmp_path, data.replace(b"llama.block", b"llam\xff.block"))
    assert "truncated" in refusal(tmp_path, data[:-64])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([NewTensor("a", (32, 2), 0, 256), NewTensor("a", (32,), 0, 128)], "duplicate tensor"),
        ([NewTensor("a", (2**60, 2**60), 0, 256)], "dimensions"),
        ([NewTensor("a", (0,), 0, 256)], "dimensions"),
        ([NewTensor("a", (30, 2), 8, 68)], "block of 32"),
        ([NewTensor("a", (64, 4), 0, 32), NewTensor("b", (64,), 0, 256)], "overlap"),
    ],
)
def test_impossible_tensors_are_named(tmp_path: Path, tensors: list[NewTensor], words: str) -> None:
    message = refusal(tmp_path, gguf_bytes(tensors))
    assert words in message
    assert "tensor a" in message


def test_a_duplicate_key_and_a_wrong_alignment_are_refused(tmp_path: Path) -> None:
    assert "alignment" in refusal(tmp_path, gguf_bytes(keys={"general.alignment": uint32_value(7)}))
    data = gguf_bytes(keys={"first": uint32_value(1), "other": uint32_value(2)})
    assert "duplicate key" in refusal(tmp_path, data.replace(b"other", b"first"))


def test_a_file_damaged_anywhere_is_read_or_refused_and_raises_nothing_else(tmp_path: Path) -> None:
    data, rng = gguf_bytes(), random.Random(4)
    path = tmp_path / "hostile.gguf"
    for _ in range(400):
        spoiled = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        path.write_bytes(spoiled[: rng.randint(1, len(spoiled))] if rng.random() < 0.3 else spoiled)
        try:
            read_gguf(path)
        except OperatorError:
            continue


def test_a_missing_or_empty_file_is_an_operator_error(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path, b"")
    with pytest.raises(OperatorError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
