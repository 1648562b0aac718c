"""Reading and writing safetensors a few rows at a time, so that memory does not grow with the model.

Format: u64 length of a JSON header, the header, then the tensors' bytes; offsets are relative to the header's end.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

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
        return int(np.prod(self.shape, dtype=np.int64)) if self.shape else 1


def read_header(path: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """What a safetensors file holds, in the order of its bytes, and its metadata.

    Raises:
        OperatorError: it is cut short or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("header too long")
            header: dict[str, Any] = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        metadata = header.pop("__metadata__", {})
        infos = [
            TensorInfo(name, path, value["dtype"], tuple(value["shape"]), 8 + length + value["data_offsets"][0])
            for name, value in header.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise OperatorError(f"{path} is not a whole safetensors file: {printable(str(error), 200)}") from error
    infos.sort(key=lambda info: info.offset)
    for info in infos:
        if info.offset + info.values * DTYPE_BYTES.get(info.dtype, 1) > size:
            raise OperatorError(f"{path} is cut short: {printable(info.name)} ends after the file does")
    return infos, metadata


def to_float32(raw: bytes, dtype: str) -> NDArray[np.float32]:
    """Stored values as float32, exactly (F64 excepted)."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]
    return np.frombuffer(raw, kind).astype("<f4", copy=False)


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
        row_bytes = info.columns * DTYPE_BYTES[info.dtype]
        with info.file.open("rb") as file:
            raw = os.pread(file.fileno(), (stop - start) * row_bytes, info.offset + start * row_bytes)
            while len(raw) < (stop - start) * row_bytes:  # one read returns at most 2 GiB
                more = os.pread(
                    file.fileno(), (stop - start) * row_bytes - len(raw), info.offset + start * row_bytes + len(raw)
                )
                if not more:
                    raise OperatorError(f"{info.file} was cut short while it was read")
                raw += more
        return to_float32(raw, info.dtype).reshape(stop - start, info.columns)

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor as float32, in its shape."""
        info = self.tensors[name]
        return self.read_rows(name, 0, info.rows).reshape(info.shape)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # transformers prefers it over an index beside it
        return [single]
    if not index.is_file():
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
            size = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
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
