"""Wrong safetensors files: each is refused at once, with a message that names the file and the tensor."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.hf_model.tensor_files import SafetensorsFolder, read_header
from recipes.problems import OperatorError


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def spelled(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": tensor(0, 16, [1 << 60])}, 16, "w has shape"),
        ({"w": tensor(0, 16, [1 << 40, 1 << 40])}, 16, "w has 16 bytes"),
        ({"w": tensor(0, 1 << 59, [1 << 57])}, 16, "is truncated: w"),
        ({"w": tensor(0, 16, [-2, -2])}, 16, "w has shape"),
        ({"w": tensor(0, 16, [4.0])}, 16, "w has shape"),
        ({"w": tensor(0, 16, [True, 4])}, 16, "w has shape"),
        ({"w": tensor(0, 16, [4]), "v": tensor(8, 24, [4])}, 24, "v overlaps the tensor before it"),
        ({"w": tensor(0, 16, [4]), "v": tensor(0, 16, [4])}, 16, "overlaps"),
        ({"w": tensor(0, 16, [4]), "v": tensor(32, 48, [4])}, 48, "v leaves a gap"),
        ({"w": tensor(16, 0, [4])}, 16, "w has -16 bytes"),
        ({"w": tensor(0, 16, [4])}, 15, "is truncated: w"),
        ({"w": tensor(0, 16, [4])}, 17, "1 bytes follow its last tensor"),
        ({"w": tensor(0, 16, [4], "F8_E9")}, 16, "w has type F8_E9"),
        ({"w": tensor(0, 16, [1] * 9)}, 16, "w has shape"),
        ({"w": {"dtype": "F32"}}, 16, "shape"),
        ({"w": 3}, 16, "not a complete safetensors file"),
        ([], 16, "not a table"),
        ({"__metadata__": []}, 0, "not a table"),
        (b'{"w":%s,"w":%s}' % (spelled(tensor(0, 8, [2])), spelled(tensor(8, 16, [2]))), 16, "w occurs twice"),
        (b'{"a":' * 100_000, 0, "not a complete safetensors file"),
        (b"\xff" * 64, 0, "not a complete safetensors file"),
        ({"\x1b[31mred\n": tensor(0, 16, [9])}, 16, "has 16 bytes"),
    ],
)  # fmt: skip
def test_a_lying_header_is_refused_and_names_the_tensor(tmp_path: Path, header: Any, data: int, message: str) -> None:
    path = write(tmp_path / "m.safetensors", header, bytes(data))
    with pytest.raises(OperatorError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 7, 1 << 20, 1 << 60, (1 << 64) - 1])
def test_a_length_beyond_the_file_costs_nothing(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "m.safetensors", {"w": tensor(0, 16, [4])}, bytes(16), length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OperatorError, match="not a complete safetensors file"):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "kilobytes"


def test_a_file_shorter_than_its_length_field_is_refused(tmp_path: Path) -> None:
    for size in range(8):
        path = tmp_path / "m.safetensors"
        path.write_bytes(bytes(size))
        with pytest.raises(OperatorError, match="not a complete safetensors file"):
            read_header(path)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_no_damage_is_taken_for_a_tensor_that_is_not_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("f") / "m.safetensors"
    write(path, {"w": tensor(0, 16, [4]), "v": tensor(16, 32, [2, 2])}, bytes(32))
    raw = bytearray(path.read_bytes())
    if at < len(raw):
        raw[at] = byte
    path.write_bytes(bytes(raw) if len(junk) % 3 else junk)
    try:
        infos, _ = read_header(path)
    except OperatorError:
        return
    assert sum(info.bytes for info in infos) == path.stat().st_size - min(
        (info.offset for info in infos), default=path.stat().st_size
    )


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[" * 100_000,
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../../etc/passwd"}}',
        json.dumps({"weight_map": {"a": "x" * 300}}),
        json.dumps({"weight_map": {"a": "a\x00b\x1b[2J"}}),
        json.dumps({"weight_map": {"a": {"b": 1}}}),
    ],
)
def test_an_index_of_shards_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(OperatorError, match=r"index of shards|lacks shard") as caught:
        SafetensorsFolder(tmp_path)
    assert "\x1b" not in caught.value.message
