"""Read untrusted GGUF files: every count, length and offset is checked against the file before use.

Values keep their bytes from the file, so that copying a file's keys changes none of them. Format: GGUF version 2 and 3,
little-endian (ggml's docs/gguf.md).
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engines.files import open_regular, read_into
from engines.llama.ggml_types import TYPES, TensorType
from recipes.problems import OperatorError, printable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65_535
DEFAULT_ALIGNMENT = 32
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
"""Keys of every file of a split model: its number from 0, the number of files, and of tensors in all of them."""
MAX_PARTS = 65_535
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
BY_ID = {kind.id: kind for kind in TYPES.values()}
UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
_SCALARS = {
    UINT8: "<B", INT8: "<b", UINT16: "<H", INT16: "<h", UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?",
    UINT64: "<Q", INT64: "<q", FLOAT64: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A key's value: its type, its bytes in the file, and the decoded scalar or string; None for arrays."""

    kind: int
    raw: bytes
    scalar: int | float | bool | str | None


@dataclass(frozen=True)
class Tensor:
    """A tensor's place. `dimensions` are in the file's order, columns first. `kind` is None for an unknown type.

    `part` is the file that contains it, if that is not the first file of a split model.
    """

    name: str
    dimensions: tuple[int, ...]
    type_id: int
    kind: TensorType | None
    start: int
    room: int
    part: Path | None = None

    @property
    def columns(self) -> int:
        """Values per row."""
        return self.dimensions[0] if self.dimensions else 1

    @property
    def rows(self) -> int:
        """Product of all other dimensions."""
        rows = 1
        for size in self.dimensions[1:]:
            rows *= size
        return rows

    @property
    def matrix(self) -> bool:
        """Whether it has more than one dimension, as ggml counts: trailing dimensions of 1 do not count."""
        return any(size != 1 for size in self.dimensions[1:])


@dataclass(frozen=True)
class GgufFile:
    """A file's keys and tensors, in file order. The `room` of a tensor ends where the next tensor begins.

    Of a split model, `path` and `keys` are the first file's, and `parts` are all files.
    """

    path: Path
    keys: dict[str, Value]
    tensors: dict[str, Tensor]
    parts: tuple[Path, ...] = ()

    def scalar(self, key: str, default: Any = None) -> Any:
        """A key's number, boolean or string; the default when the key is missing or an array."""
        value = self.keys.get(key)
        return default if value is None or value.scalar is None else value.scalar

    def read(self, tensor: Tensor, row: int, rows: int) -> bytes:
        """Bytes of `rows` rows of a tensor of a known type, from `row` on."""
        assert tensor.kind is not None
        data = bytearray(rows * tensor.kind.row_bytes(tensor.columns))
        self.read_into(tensor, row, memoryview(data))
        return bytes(data)

    def read_into(self, tensor: Tensor, row: int, place: memoryview) -> None:
        """Fill a buffer with a tensor's bytes, from a row on.

        Raises:
            OperatorError: the file was truncated since its header was read.
        """
        assert tensor.kind is not None
        try:
            read_into(tensor.part or self.path, tensor.start + row * tensor.kind.row_bytes(tensor.columns), place)
        except EOFError as error:
            name = printable(tensor.name, 200)
            raise OperatorError(f"{self.path}: tensor {name} is incomplete; the file was truncated") from error


class _Reader:
    """A position in the mapped file; every step first checks that enough bytes are left."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self.at, self.size = data, path, 0, len(data)
        self.where = "header"

    def bad(self, what: str) -> OperatorError:
        return OperatorError(f"{self._path}: damaged GGUF file: {what} ({printable(self.where, 200)})")

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise self.bad(f"{count} bytes expected, {self.size - self.at} left")
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, limit: int | None = None) -> str:
        length = int(self.unpack("<Q"))
        if limit is not None and length > limit:
            raise self.bad(f"name of {length} bytes; allowed up to {limit}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.bad("text that is not UTF-8") from error

    def value(self) -> Value:
        kind, start = int(self.unpack("<I")), self.at
        if kind in _SCALARS:
            scalar = self.unpack(_SCALARS[kind])
        elif kind == STRING:
            scalar = self.text()
        else:
            scalar = None
            self._skip_array(kind)
        return Value(kind, bytes(self._data[start : self.at]), scalar)

    def _skip_array(self, kind: int) -> None:
        if kind != ARRAY:
            raise self.bad(f"unknown value type {kind}")
        item, count = int(self.unpack("<I")), int(self.unpack("<Q"))
        least = struct.calcsize(_SCALARS[item]) if item in _SCALARS else 8
        if item not in _SCALARS and item != STRING:
            raise self.bad(f"array of unknown value type {item}")
        if count > (self.size - self.at) // least:
            raise self.bad(f"array of {count} values, {self.size - self.at} bytes left")
        if item in _SCALARS:
            self.take(count * least)
            return
        for _ in range(count):
            self.take(int(self.unpack("<Q")))


def read_gguf(path: Path) -> GgufFile:
    """Read the keys and the places of the tensors; of a split model, those of all its files.

    Args:
        path: the file, or the first file of a split model.

    Raises:
        OperatorError: the file is missing or damaged, or its sizes are wrong; the message names the key or tensor.
            Or a file of a split model is missing or of another model.
    """
    file = _read_one(path)
    count = file.scalar(SPLIT_COUNT, 0)
    return _joined(file, count) if isinstance(count, int) and count > 1 else file


def part_paths(first: Path) -> list[Path]:
    """The files of a split model, by the name of one of them; the file alone if it has no such name."""
    found = _PART.fullmatch(first.name)
    if found is None or not 0 < int(found[3]) <= MAX_PARTS:
        return [first]
    return [first.with_name(f"{found[1]}-{n:05d}-of-{found[3]}.gguf") for n in range(1, int(found[3]) + 1)]


def _joined(first: GgufFile, count: int) -> GgufFile:
    """A split model from its first file.

    Raises:
        OperatorError: it is not the first, or the others are missing or do not belong to it; all missing are named.
    """
    number, paths = first.scalar(SPLIT_NO, 0), part_paths(first.path)
    if number != 0:
        raise OperatorError(
            f"{first.path} is file {number + 1} of {count} of a split model", f"name the first: {paths[0]}"
        )
    if len(paths) != count:
        raise OperatorError(
            f"{first.path} is the first of {count} files of a split model, but its name does not say so",
            f"names of split models end in -00001-of-{count:05d}.gguf",
        )
    missing = [path for path in paths if not path.is_file()]
    if missing:
        listed = ", ".join(path.name for path in missing[:8]) + (" …" if len(missing) > 8 else "")
        raise OperatorError(f"{first.path}: {len(missing)} of {count} files are missing: {printable(listed, 600)}")
    tensors = dict(first.tensors)
    for index, path in enumerate(paths[1:], start=1):
        part = _read_one(path)
        if (part.scalar(SPLIT_NO), part.scalar(SPLIT_COUNT)) != (index, count):
            raise OperatorError(f"{path} says that it is another file of a split model than its name does")
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise OperatorError(f"{path}: tensor {printable(name, 200)} is in another file of the model too")
            tensors[name] = replace(tensor, part=path)
    total = first.scalar(SPLIT_TENSORS, len(tensors))
    if total != len(tensors):
        raise OperatorError(f"{first.path}: {SPLIT_TENSORS} is {total}, but the files have {len(tensors)} tensors")
    return GgufFile(first.path, first.keys, tensors, tuple(paths))


def _read_one(path: Path) -> GgufFile:
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Reader(data, path), path)
    except (OSError, ValueError) as error:
        raise OperatorError(f"{path}: cannot be read as GGUF: {printable(str(error), 200)}") from error


def _read(reader: _Reader, path: Path) -> GgufFile:
    if reader.size < 24 or reader.take(4) != MAGIC:
        raise OperatorError(f"{path}: not a GGUF file: it does not begin with the bytes GGUF")
    version = int(reader.unpack("<I"))
    if version not in VERSIONS:
        raise OperatorError(f"{path}: GGUF version — got {version}; allowed 2 and 3, little-endian")
    tensors, keys = int(reader.unpack("<Q")), int(reader.unpack("<Q"))
    # A key has at least 13 bytes, a tensor 24.
    if keys * 13 + tensors * 24 > reader.size:
        raise reader.bad(f"{tensors} tensors and {keys} keys in {reader.size} bytes")
    values: dict[str, Value] = {}
    for _ in range(keys):
        name = reader.text(MAX_NAME_BYTES)
        reader.where = f"key {name}"
        if name in values:
            raise reader.bad("duplicate key")
        values[name] = reader.value()
    found = [_tensor(reader) for _ in range(tensors)]
    alignment = values["general.alignment"].scalar if "general.alignment" in values else DEFAULT_ALIGNMENT
    if not isinstance(alignment, int) or not 8 <= alignment <= 2**20 or alignment % 8:
        raise OperatorError(f"{path}: general.alignment — got {alignment!r}; allowed a multiple of 8")
    data_start = -(-reader.at // alignment) * alignment
    return GgufFile(path, values, _placed(reader, found, data_start, alignment))


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    name = reader.text(MAX_NAME_BYTES)
    reader.where = f"tensor {name}"
    count = int(reader.unpack("<I"))
    if count > MAX_DIMENSIONS:
        raise reader.bad(f"{count} dimensions; allowed up to {MAX_DIMENSIONS}")
    dimensions = tuple(int(reader.unpack("<Q")) for _ in range(count))
    if any(not 0 < size < 2**40 for size in dimensions):
        raise reader.bad(f"dimensions {dimensions}; allowed 1 to 2^40 - 1 each")
    return name, dimensions, int(reader.unpack("<I")), int(reader.unpack("<Q"))


def _placed(
    reader: _Reader, found: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
) -> dict[str, Tensor]:
    """Check that every tensor lies within the file and that no two share bytes."""
    placed: dict[str, Tensor] = {}
    order = sorted(found, key=lambda item: item[3])
    ends = [data_start + item[3] for item in order[1:]] + [reader.size]
    rooms = {id(item): end for item, end in zip(order, ends, strict=True)}
    for item in found:
        name, dimensions, type_id, offset = item
        reader.where = f"tensor {name}"
        start = data_start + offset
        kind = BY_ID.get(type_id)
        tensor = Tensor(name, dimensions, type_id, kind, start, rooms[id(item)] - start)
        if name in placed:
            raise reader.bad("duplicate tensor")
        if offset % alignment:
            raise reader.bad(f"data offset {offset} is not a multiple of {alignment}")
        if kind is not None and tensor.columns % kind.block:
            raise reader.bad(f"rows of {tensor.columns} values are not a multiple of the block of {kind.block}")
        needed = tensor.rows * kind.row_bytes(tensor.columns) if kind is not None else 0
        if tensor.room < needed or start > reader.size:
            have = max(0, tensor.room)
            raise reader.bad(f"needs {needed} bytes, has {have}: the file is truncated or tensors overlap")
        placed[name] = tensor
    return placed


def padded(count: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """The next multiple of the alignment."""
    return -(-count // alignment) * alignment
