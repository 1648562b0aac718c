"""Reads and writes safetensors a few rows at a time, so that memory use does not grow with the model.

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
from queue import Queue, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from engines.artifacts.sharded import refuse_shards
from engines.files import Draft, open_regular, read_into
from engines.json_text import read_json
from recipes.problems import OperatorError, printable

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
CHUNK_BYTES = 32 * 1024 * 1024
"""Size of one chunk of rows as float32."""
_MAX_HEADER_BYTES = 100_000_000
ROW_BLOCK = 64
"""Rows that are always computed together, so that a value does not depend on where chunks end."""
_QUEUED = 3
"""Chunks that may wait to be written: enough that neither side waits, few enough to bound memory."""


@dataclass(frozen=True)
class TensorInfo:
    """The place, type and shape of one tensor. `offset` counts from the start of the file."""

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
    """The tensors of a safetensors file in file order, and its metadata.

    The header is not trusted: its tensors must cover every byte of the file exactly once.

    Raises:
        OperatorError: the file is truncated or not a safetensors file; the message names the tensor.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length} bytes, but the file has {size}")
            header = json.loads(file.read(length), object_pairs_hook=_no_name_twice)
        metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
        if not isinstance(metadata, dict):
            raise TypeError("its header is not a table of tensors")
        infos = [_info(name, path, value, 8 + length) for name, value in header.items()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise OperatorError(f"{path} is not a complete safetensors file: {printable(str(error), 300)}") from error
    infos.sort(key=lambda info: (info.offset, info.bytes))
    _check_places(path, infos, 8 + length, size)
    return infos, metadata


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{printable(twice, 200)} occurs twice")
    return found


def _info(name: str, path: Path, value: Any, start: int) -> TensorInfo:
    shown = printable(name, 200)
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"{shown} has type {printable(str(dtype), 40)}; allowed {', '.join(DTYPE_BYTES)}")
    numbers = [begin, end, *shape]
    if not all(type(number) is int and 0 <= number < 1 << 60 for number in numbers) or len(shape) > 8:
        raise ValueError(
            f"{shown} has shape {printable(str(shape), 80)} and offsets {printable(f'{begin}, {end}', 80)}; allowed "
            "whole numbers ≥ 0 and at most 8 dimensions"
        )
    info = TensorInfo(name, path, dtype, tuple(shape), start + begin)
    if info.bytes != end - begin:
        raise ValueError(f"{shown} has {end - begin} bytes; {dtype} {list(shape)} needs {info.bytes}")
    return info


def _check_places(path: Path, infos: list[TensorInfo], start: int, size: int) -> None:
    """Every byte after the header belongs to one tensor."""
    at = start
    for info in infos:
        if info.offset != at:
            what = "overlaps the tensor before it" if info.offset < at else "leaves a gap before it"
            raise OperatorError(f"{path} is not a complete safetensors file: {printable(info.name, 200)} {what}")
        at += info.bytes
        if at > size:
            raise OperatorError(f"{path} is truncated: {printable(info.name, 200)} ends beyond the end of the file")
    if at < size:
        raise OperatorError(f"{path} is not a complete safetensors file: {size - at} bytes follow its last tensor")


def to_float32(raw: bytes | bytearray, dtype: str) -> NDArray[np.float32]:
    """Stored values as float32 [values]; exact for every type except F64."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]
    return np.frombuffer(raw, kind).astype("<f4", copy=False)


class Weights(Protocol):
    """Tensors by name, read a few rows at a time, from any source.

    Attributes:
        folder: the model's folder.
        files: the weight files of the model, in the order in which they are written.
        tensors: every tensor; its `file` is the one of `files` that it belongs to.
    """

    folder: Path
    files: list[Path]
    tensors: dict[str, TensorInfo]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows, float32 [stop - start, columns]."""

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in its shape, float32 [rows, columns] or [length]."""


class SafetensorsFolder:
    """The tensors of a model folder, single file or shards, by name. Files are open only while they are read."""

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            OperatorError: the folder has no weights, lacks a shard, or has a tensor in two shards.
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
        """Rows, float32 [stop - start, columns]."""
        return read_float_rows(self.tensors[name], start, stop)

    def read_bytes(self, name: str, start: int, stop: int) -> bytearray:
        """Rows in stored form: bytes of [stop - start, columns]."""
        return stored_rows(self.tensors[name], start, stop)

    def read_into(self, name: str, start: int, place: memoryview) -> None:
        """Fill `place` with rows in stored form, from row `start` on."""
        _read_rows_into(self.tensors[name], start, place)

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in its shape, float32 [rows, columns] or [length]."""
        info = self.tensors[name]
        return self.read_rows(name, 0, info.rows).reshape(info.shape)


def read_float_rows(info: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor as float32, [stop - start, columns].

    Raises:
        OperatorError: the file became shorter after its header was read.
    """
    return to_float32(stored_rows(info, start, stop), info.dtype).reshape(stop - start, info.columns)


def stored_rows(info: TensorInfo, start: int, stop: int) -> bytearray:
    """Rows of a tensor in stored form: bytes of [stop - start, columns].

    Raises:
        OperatorError: the file became shorter after its header was read.
    """
    data = bytearray((stop - start) * info.columns * DTYPE_BYTES[info.dtype])
    _read_rows_into(info, start, memoryview(data))
    return data


def _read_rows_into(info: TensorInfo, start: int, place: memoryview) -> None:
    try:
        read_into(info.file, info.offset + start * info.columns * DTYPE_BYTES[info.dtype], place)
    except EOFError as error:
        raise OperatorError(str(error)) from error


def _weight_files(folder: Path) -> list[Path]:
    refuse_shards(folder)
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():  # transformers prefers it over an index beside it
        return [single]
    if not index.is_file():
        pickled = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]
        if pickled:
            raise OperatorError(
                f"{folder} stores its weights as a pickle ({printable(min(pickled))}): loading a pickle can run any "
                "code that its author put in",
                "get the model as safetensors; or, if you trust the author, load it and save it with "
                "safe_serialization=True",
            )
        raise OperatorError(
            f"{folder} has no model.safetensors and no model.safetensors.index.json", "save the model as safetensors"
        )
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OperatorError(f"{index} is not an index of shards") from error
    files = [folder / str(name) for name in names]
    missing = [path.name for path in files if path.parent != folder or not _is_file(path)]
    if missing:
        raise OperatorError(f"{folder} lacks shard {printable(missing[0])}", "the download or copy is incomplete")
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def row_chunks(rows: int, columns: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Bounds of chunks of rows, each about `chunk_bytes` as float32, and at least 64 rows.

    A product of a few rows may be summed in another order than one of many rows; a product of whole blocks is not.
    """
    step = max(1, chunk_bytes // max(1, 4 * columns * ROW_BLOCK)) * ROW_BLOCK
    start = 0
    while start < rows:
        stop = rows if rows - start < step + ROW_BLOCK else start + step
        yield start, stop
        start = stop


class Buffers:
    """A few buffers that are reused: one is filled while others wait to be written.

    Allocating buffers of this size each time costs as much in page faults as the sums that fill them, or the process
    keeps the freed memory.
    """

    def __init__(self, count: int, size: int) -> None:
        """Allocate `size` bytes each; `take` replaces a buffer that is too small."""
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        for _ in range(count):
            self._free.put(bytearray(size))

    def take(self, size: int) -> memoryview:
        """The first `size` bytes of a free buffer; waits until one is free."""
        buffer = self._free.get()
        if len(buffer) < size:
            buffer = bytearray(size)
        return memoryview(buffer)[:size]

    def give(self, part: memoryview) -> None:
        """Return a buffer that `take` lent."""
        buffer = part.obj
        assert isinstance(buffer, bytearray)
        self._free.put(buffer)


class SafetensorsWriter:
    """Writes one safetensors file tensor by tensor, under a temporary name until it is complete and synced."""

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        buffers: Buffers | None = None,
    ) -> None:
        """Write the header.

        Args:
            path: final name.
            tensors: safetensors type and shape by name, in the order they will be written.
            metadata: text to keep in the header; transformers requires `format`.
            buffers: the owner of the memory views that are written; each is returned to it.
        """
        self.path = path
        self._buffers = buffers
        self._draft = Draft(path)
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = 0
        for name, (dtype, shape) in tensors.items():
            size = math.prod(shape) * DTYPE_BYTES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._expected = 8 + len(text) + offset
        self._file: BinaryIO = self._draft.path.open("wb", buffering=0)
        self._queue: Queue[bytes | bytearray | memoryview | None] = Queue(maxsize=_QUEUED)
        self._failed: OSError | None = None
        self._written = 0
        # The next rows are computed while the last ones are copied to the disk's cache. A thread suffices, because
        # writing releases the interpreter's lock.
        self._thread = Thread(target=self._write_all, name=f"writing {path.name}", daemon=True)
        self._thread.start()
        self.write(struct.pack("<Q", len(text)) + text)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append the next bytes; the caller must not change them any more.

        Raises:
            OSError: earlier bytes could not be written.
        """
        if self._failed is not None:
            raise self._failed
        self._queue.put(data)

    def _write_all(self) -> None:
        while (data := self._queue.get()) is not None:
            if self._failed is None:
                try:
                    self._write(memoryview(data))
                except OSError as error:
                    self._failed = error
            if self._buffers is not None and isinstance(data, memoryview):
                self._buffers.give(data)

    def _write(self, data: memoryview) -> None:
        while data:
            count = self._file.write(data)
            self._written += count
            data = data[count:]

    def finish(self) -> None:
        """Wait until everything is written, sync the file and rename it.

        Raises:
            OSError: the file could not be written; no partial file is left behind.
        """
        self._stop()
        self._file.close()
        if self._failed is not None or self._written != self._expected:
            self._draft.abandon()
            if self._failed is not None:
                raise self._failed
            raise AssertionError(f"{self.path.name}: {self._written} bytes written, {self._expected} announced")
        self._draft.commit()

    def abandon(self) -> None:
        """Remove the partial file."""
        self._stop()
        self._file.close()
        self._draft.abandon()

    def _stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()
