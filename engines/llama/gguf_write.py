"""The header of a GGUF file, before its tensors' data: keys, and the tensors' names, shapes, types and offsets."""

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
    UINT16,
    UINT32,
    Value,
    padded,
)

VERSION = 3


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write: `dimensions` with columns first, `bytes` of data."""

    name: str
    dimensions: tuple[int, ...]
    type_id: int
    bytes: int


def pack_text(text: str | bytes) -> bytes:
    """A string in GGUF's form: length, then UTF-8. Bytes stay unchanged."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def text_value(text: str) -> Value:
    """A string value."""
    return Value(STRING, pack_text(text), text)


def uint32_value(number: int) -> Value:
    """An unsigned 32-bit integer value."""
    return Value(UINT32, struct.pack("<I", number), number)


def uint16_value(number: int) -> Value:
    """An unsigned 16-bit integer value."""
    return Value(UINT16, struct.pack("<H", number), number)


def int32_value(number: int) -> Value:
    """A signed 32-bit integer value."""
    return Value(INT32, struct.pack("<i", number), number)


def float32_value(number: float) -> Value:
    """A 32-bit float value."""
    return Value(FLOAT32, struct.pack("<f", number), number)


def bool_value(flag: bool) -> Value:
    """A boolean value."""
    return Value(BOOL, struct.pack("<?", flag), flag)


def text_list(texts: Sequence[str | bytes]) -> Value:
    """An array of strings."""
    return _list(STRING, len(texts), b"".join(map(pack_text, texts)))


def int32_list(numbers: Sequence[int]) -> Value:
    """An array of signed 32-bit integers."""
    return _list(INT32, len(numbers), struct.pack(f"<{len(numbers)}i", *numbers))


def float32_list(numbers: Sequence[float]) -> Value:
    """An array of 32-bit floats."""
    return _list(FLOAT32, len(numbers), struct.pack(f"<{len(numbers)}f", *numbers))


def bool_list(flags: Sequence[bool]) -> Value:
    """An array of booleans."""
    return _list(BOOL, len(flags), struct.pack(f"<{len(flags)}?", *flags))


def uint8_list(data: bytes) -> Value:
    """An array of bytes."""
    return _list(UINT8, len(data), data)


def _list(kind: int, count: int, data: bytes) -> Value:
    return Value(ARRAY, struct.pack("<IQ", kind, count) + data, None)


def write_header(file: BinaryIO, keys: Mapping[str, Value], tensors: Sequence[NewTensor]) -> None:
    """Write everything before the tensors' data; the data must follow in order, each padded to 32 bytes."""
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
