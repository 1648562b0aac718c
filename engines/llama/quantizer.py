"""Quantize rows: llama.cpp's kernels in a worker process, or the gguf package's numpy code for its types."""

from __future__ import annotations

import contextlib
import importlib.metadata
import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.files import file_sha256
from engines.llama.ggml_types import TYPES
from engines.llama.golden import check_golden
from engines.llama.library import NativeError, find_kernels
from engines.llama.worker_process import WorkerProcess


class Quantizer(Protocol):
    """A quantizer of rows; `open_quantizer` returns only those that pass the self-test."""

    record: dict[str, Any]

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns], and float32 [columns] importance of each column → uint8 [rows, bytes of a row]."""
        ...

    def close(self) -> None:
        """End the worker process, if it has one."""
        ...


class NotFiniteError(Exception):
    """A value to quantize is not finite."""


class KernelQuantizer:
    """llama.cpp's kernels in one worker process; rows are passed in shared memory."""

    def __init__(self, threads: int, library: Path | None = None) -> None:
        """Start the worker with a library; the pinned one by default.

        Raises:
            NativeError: the library is missing or incompatible.
        """
        self._shared = os.memfd_create("rows")
        self._map: mmap.mmap | None = None
        self._asking = ThreadPoolExecutor(1)
        self._slots: list[Future[memoryview] | None] = [None, None]
        self._slot = 0
        self._worker = WorkerProcess("engines.llama.quantize_worker", threads, self._shared)
        try:
            self.record, _ = self._worker.ask({"open": threads, "library": str(library) if library else None})
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._worker.pid

    def submit(
        self,
        type_name: str,
        source: str,
        shape: tuple[int, int],
        fill: Callable[[memoryview], None],
        importance: NDArray[np.float32] | None = None,
    ) -> Future[memoryview]:
        """Quantize rows in the background; at most two requests are in flight, and a third waits for the first.

        Args:
            type_name: a name of `TYPES`.
            source: type of the rows' values: F32, F16 or BF16.
            shape: rows, and bytes of a row of the source.
            fill: writes the rows' bytes into the given buffer.
            importance: float32 [columns], or None.

        Returns:
            A future of the bytes; it raises `NotFiniteError` or `NativeError`.
        """
        self._slot = 1 - self._slot
        size, earlier = shape[0] * shape[1], self._slots[self._slot]
        if earlier is not None:
            wait([earlier])
        at = self._slot * self._room(size)
        assert self._map is not None
        with memoryview(self._map)[at : at + size] as view:
            fill(view)
        header = {"type": type_name, "source": source, "at": at, "rows": shape[0], "row_bytes": shape[1]}
        payload = b"" if importance is None else np.ascontiguousarray(importance, "<f4").tobytes()
        future = self._asking.submit(self._ask, header, payload)
        self._slots[self._slot] = future
        return future

    def _ask(self, header: dict[str, Any], payload: bytes) -> memoryview:
        answer, data = self._worker.ask(header, payload)
        if answer.get("not_finite"):
            raise NotFiniteError
        return memoryview(data)

    def _room(self, size: int) -> int:
        """Provide two slots of at least this size; returns the offset of the second. Growing waits for requests in
        flight."""
        have = 0 if self._map is None else len(self._map) // 2
        if have < size:
            wait([slot for slot in self._slots if slot is not None])
            have = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            if self._map is not None:
                self._map.close()
            os.ftruncate(self._shared, 2 * have)
            self._map = mmap.mmap(self._shared, 2 * have)
        return have

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns], and float32 [columns] importance of each column → uint8 [rows, bytes of a row].

        Raises:
            NativeError: the worker failed, or a value is not finite.
        """
        try:
            made = self.submit_floats(type_name, rows, importance).result()
        except NotFiniteError as error:
            raise NativeError("a value to quantize is not finite") from error
        return np.frombuffer(made, np.uint8).reshape(rows.shape[0], -1)

    def submit_floats(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> Future[memoryview]:
        """`submit` for float32 [rows, columns] in memory."""
        source = np.ascontiguousarray(rows, "<f4").data.cast("B")

        def fill(view: memoryview) -> None:
            view[:] = source

        return self.submit(type_name, "F32", (rows.shape[0], 4 * rows.shape[1]), fill, importance)

    def close(self) -> None:
        """End the worker."""
        self._asking.shutdown()
        self._worker.close()
        if self._map is not None:
            self._map.close()
            self._map = None
        with contextlib.suppress(OSError):
            os.close(self._shared)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NumpyQuantizer:
    """The gguf package's own quantization, for the simple types."""

    def __init__(self) -> None:
        """Record the gguf package's version and hash."""
        path = Path(gguf.quants.__file__)
        self.record: dict[str, Any] = {
            "name": "gguf numpy",
            "version": importlib.metadata.version("gguf"),
            "path": str(path),
            "sha256": file_sha256(path),
        }

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns] → uint8 [rows, bytes of a row].

        Raises:
            NativeError: only llama.cpp's kernels support the type, or the importance matrix for it.
        """
        kind = TYPES[type_name]
        if importance is not None and kind.importance != "ignored":
            raise NativeError(f"{type_name} with an importance matrix needs llama.cpp's kernels")
        if not kind.in_numpy:
            raise NativeError(f"{type_name} needs llama.cpp's kernels")
        quantized: NDArray[np.uint8] = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[type_name])
        return quantized

    def close(self) -> None:
        """No worker process to end."""


def open_quantizer(
    type_names: set[str], threads: int, wanted: str = "auto", llama_cpp: str | None = None
) -> tuple[Quantizer, list[str]]:
    """A tested quantizer for the types: the kernels of the operator's llama.cpp, else the pinned ones, else numpy.

    Args:
        type_names: the block types to write.
        threads: CPU threads.
        wanted: "kernels" or "numpy" to allow only one kind.
        llama_cpp: the operator's build of llama.cpp; None for COCKPIT_LLAMA_CPP.

    Returns:
        The quantizer, its `record` extended by `self_test`, and notes for the operator.

    Raises:
        NativeError: no quantizer passes the self-test for every type; the message has the reason for each.
    """
    refused: list[str] = []
    own = find_kernels(llama_cpp)
    makes: list[tuple[str, Callable[[], Quantizer]]] = [
        *([("kernels", lambda: KernelQuantizer(threads, own))] if own else []),
        ("kernels", lambda: KernelQuantizer(threads)),
        ("numpy", NumpyQuantizer),
    ]
    for make in [make for kind, make in makes if wanted in (kind, "auto", "llama-quantize")]:
        quantizer: Quantizer | None = None
        try:
            quantizer = make()
            tests = {name: check_golden(quantizer, name) for name in sorted(type_names)}
        except NativeError as error:
            refused.append(str(error))
            if quantizer is not None:
                quantizer.close()
            continue
        quantizer.record = {**quantizer.record, "self_test": tests}
        notes = [f"kernels are not used: {reason}" for reason in refused]
        return quantizer, notes
    raise NativeError("; ".join(refused))
