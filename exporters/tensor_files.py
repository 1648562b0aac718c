"""Reading and writing safetensors a few rows at a time, so that memory does not grow with the model.

Format: u64 length of a JSON header, the header, then the tensors' bytes; offsets are relative to the header's end.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from recipes.problems import OperatorError, printable

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
CHUNK_BYTES = 32 * 1024 * 1024
"""Bytes of float32 that one chunk of rows may take."""
_MAX_HEADER_BYTES = 100_000_000
_ROW_BLOCK = 64


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor is. `offset` counts from the start of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def rows(self) -> int:
        """The first dimension; a vector is one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Values of one row."""
        return self.values // self.rows if self.rows else 0

    @property
    def values(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return self.values * DTYPE_BYTES[self.dtype]


def read_header(path: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """What a safetensors file holds, in the order of its bytes, and its metadata.

    Nothing in the header is believed: types, shapes and offsets must describe one whole file, byte after byte.

    Raises:
        OperatorError: it is cut short or not a safetensors file; the text names the tensor.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length} bytes of {size}")
            header = json.loads(file.read(length), object_pairs_hook=_no_name_twice)
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict):
            raise TypeError("its header is not a table of tensors")
        infos = [_info(name, path, value, 8 + length) for name, value in header.items()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise OperatorError(f"{path} is not a whole safetensors file: {printable(str(error), 300)}") from error
    infos.sort(key=lambda info: (info.offset, info.bytes))
    _check_places(path, infos, 8 + length, size)
    return infos, metadata


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{printable(twice, 200)} is there twice")
    return found


def _info(name: str, path: Path, value: Any, start: int) -> TensorInfo:
    shown = printable(name, 200)
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"{shown} has type {printable(str(dtype), 40)}; allowed {', '.join(DTYPE_BYTES)}")
    numbers = [begin, end, *shape]
    if not all(type(number) is int and 0 <= number < 1 << 60 for number in numbers) or len(shape) > 8:
        raise ValueError(
            f"{shown} has shape {printable(str(shape), 80)} and offsets {printable(f'{begin}, {end}', 80)}"
        )
    info = TensorInfo(name, path, dtype, tuple(shape), start + begin)
    if info.bytes != end - begin:
        raise ValueError(f"{shown} has {end - begin} bytes; {dtype} {list(shape)} has {info.bytes}")
    return info


def _check_places(path: Path, infos: list[TensorInfo], start: int, size: int) -> None:
    """Every byte after the header belongs to one tensor."""
    at = start
    for info in infos:
        if info.offset != at:
            what = "overlaps the tensor before it" if info.offset < at else "leaves a gap before it"
            raise OperatorError(f"{path} is not a whole safetensors file: {printable(info.name, 200)} {what}")
        at += info.bytes
        if at > size:
            raise OperatorError(f"{path} is cut short: {printable(info.name, 200)} ends after the file does")
    if at < size:
        raise OperatorError(f"{path} is not a whole safetensors file: {size - at} bytes after its last tensor")


def to_float32(raw: bytes, dtype: str) -> NDArray[np.float32]:
    """Stored values as float32, exactly (F64 excepted)."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]
    return np.frombuffer(raw, kind).astype("<f4", copy=False)


class Weights(Protocol):
    """Tensors by name, read a few rows at a time, from wherever they come.

    Attributes:
        folder: the model's folder.
        files: the weight files of the model, in which order they are written.
        tensors: what there is; `file` says into which file of `files` each tensor belongs.
    """

    folder: Path
    files: list[Path]
    tensors: dict[str, TensorInfo]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows as float32, [stop - start, columns]."""

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor as float32, in its shape."""


class SafetensorsFolder:
    """The tensors of a model folder, single file or shards, by name. Files are open only while they are read."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            OperatorError: no weights, a missing shard, or shards that disagree with their index.
        """
        self.folder = folder
        self.files = _weight_files(folder)
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        for path in self.files:
            infos, metadata = read_header(path)
            self.metadata |= metadata
            for info in infos:
                if info.name in self.tensors:
                    raise OperatorError(f"{folder}: {printable(info.name)} is in two shards")
                self.tensors[info.name] = info

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows as float32, [stop - start, columns]."""
        info = self.tensors[name]
        return to_float32(self.read_bytes(name, start, stop), info.dtype).reshape(stop - start, info.columns)

    def read_bytes(self, name: str, start: int, stop: int) -> bytes:
        """Rows as they are stored."""
        info = self.tensors[name]
        row_bytes = info.columns * DTYPE_BYTES[info.dtype]
        at, end = info.offset + start * row_bytes, info.offset + stop * row_bytes
        parts = []
        with info.file.open("rb") as file:
            while at < end:  # one read returns at most 2 GiB
                part = os.pread(file.fileno(), end - at, at)
                if not part:
                    raise OperatorError(f"{info.file} was cut short while it was read")
                parts.append(part)
                at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor as float32, in its shape."""
        info = self.tensors[name]
        return self.read_rows(name, 0, info.rows).reshape(info.shape)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # transformers prefers it over an index beside it
        return [single]
    if not index.is_file():
        pickled = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        if pickled:
            raise OperatorError(
                f"{folder} has its weights as a pickle ({printable(min(pickled))}): reading it runs whatever program its author put in",
                "get the model as safetensors, or load it where you trust it and save it with safe_serialization=True",
            )
        raise OperatorError(
            f"{folder} has no model.safetensors and no model.safetensors.index.json", "save the model as safetensors"
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperatorError(f"{index} is not an index of shards") from error
    files = [folder / str(name) for name in names]
    missing = [path.name for path in files if path.parent != folder or not path.is_file()]
    if missing:
        raise OperatorError(f"{folder} lacks shard {printable(missing[0])}", "the download or copy is not complete")
    return files


def row_chunks(rows: int, columns: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Bounds of chunks of rows, each about `chunk_bytes` as float32, and at least 64 rows.

    Matrix products of a few rows may be summed in another order than those of many; whole blocks of rows are not.
    """
    step = max(1, chunk_bytes // max(1, 4 * columns * _ROW_BLOCK)) * _ROW_BLOCK
    start = 0
    while start < rows:
        stop = rows if rows - start < step + _ROW_BLOCK else start + step
        yield start, stop
        start = stop


class SafetensorsWriter:
    """Writes one safetensors file tensor by tensor, under a temporary name until it is whole and on the disk."""

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        """Write the header.

        Args:
            path: final name.
            tensors: safetensors type and shape by name, in the order they will be written.
            metadata: text to keep in the header; transformers wants `format`.
        """
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, (dtype, shape) in tensors.items():
            size = math.prod(shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._expected = 8 + len(text) + offset
        self._file: BinaryIO = self._partial.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, data: bytes | memoryview) -> None:
        """Append the next bytes."""
        self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        written = self._file.tell()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is not None:
            self._partial.unlink(missing_ok=True)
            return
        if written != self._expected:
            raise AssertionError(f"{self.path.name}: {written} bytes written, {self._expected} announced")
        self._partial.rename(self.path)
