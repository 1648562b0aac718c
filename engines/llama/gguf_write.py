"""What stands in a GGUF file before its tensors' data: keys, and the tensors' names, shapes, types and places."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from engines.llama.gguf_file import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    MAGIC,
    STRING,
    UINT8,
    UINT32,
    Value,
    padded,
)

VERSION = 3


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: `dimensions` columns first, `bytes` of data."""

    name: str
    dimensions: tuple[int, ...]
    type_id: int
    bytes: int


def pack_text(text: str | bytes) -> bytes:
    """A string as GGUF writes it: length, then UTF-8. Bytes are taken as they are."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def text_value(text: str) -> Value:
    """A string to be written."""
    return Value(STRING, pack_text(text), text)


def uint32_value(number: int) -> Value:
    """An unsigned number to be written."""
    return Value(UINT32, struct.pack("<I", number), number)


def float32_value(number: float) -> Value:
    """A number to be written in 32 bits."""
    return Value(FLOAT32, struct.pack("<f", number), number)


def bool_value(flag: bool) -> Value:
    """A truth value to be written."""
    return Value(BOOL, struct.pack("<?", flag), flag)


def text_list(texts: Sequence[str | bytes]) -> Value:
    """A list of strings to be written."""
    return _list(STRING, len(texts), b"".join(map(pack_text, texts)))


def int32_list(numbers: Sequence[int]) -> Value:
    """A list of whole numbers to be written."""
    return _list(INT32, len(numbers), struct.pack(f"<{len(numbers)}i", *numbers))


def float32_list(numbers: Sequence[float]) -> Value:
    """A list of numbers to be written in 32 bits each."""
    return _list(FLOAT32, len(numbers), struct.pack(f"<{len(numbers)}f", *numbers))


def uint8_list(data: bytes) -> Value:
    """Bytes to be written."""
    return _list(UINT8, len(data), data)


def _list(kind: int, count: int, data: bytes) -> Value:
    return Value(ARRAY, struct.pack("<IQ", kind, count) + data, None)


def write_header(file: BinaryIO, keys: Mapping[str, Value], tensors: Sequence[NewTensor]) -> None:
    """Write everything before the tensors' data, which follow in order, each padded to 32 bytes."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(keys))]
    for name, value in keys.items():
        parts += [pack_text(name), struct.pack("<I", value.kind), value.raw]
    offset = 0
    for tensor in tensors:
        count = len(tensor.dimensions)
        sizes = struct.pack(f"<I{count}Q", count, *tensor.dimensions)
        parts += [pack_text(tensor.name), sizes, struct.pack("<IQ", tensor.type_id, offset)]
        offset += padded(tensor.bytes)
    header = b"".join(parts)
    file.write(header + bytes(padded(len(header)) - len(header)))
