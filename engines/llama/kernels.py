"""llama.cpp's quantization kernels by ctypes; imported in the quantize worker only."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import TYPES
from engines.llama.library import (
    NativeError,
    find_library,
    library_version,
    named_library,
    open_kernels,
    open_library,
)

BLOCK_VALUES = 128 * 1024
"""Values per task of a thread: as float32 they fit its core's cache, and no thread waits long for the last task."""

SOURCE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class Kernels:
    """`ggml_quantize_chunk` of one library."""

    def __init__(self, threads: int, library: Path | None = None) -> None:
        """Open the library; the pinned one by default.

        Rows are divided among `threads`: ctypes and numpy release the interpreter's lock during a call.
        """
        self.library = named_library(library) if library else find_library()
        native = open_kernels(self.library) if library else open_library(self.library)
        if library:
            self.library = replace(self.library, version=library_version(native))
        self._quantize = native.ggml_quantize_chunk
        # size_t ggml_quantize_chunk(enum ggml_type, const float * src, void * dst, int64_t start, int64_t nrows,
        #                            int64_t n_per_row, const float * imatrix)
        self._quantize.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        self._quantize.restype = ctypes.c_size_t
        self._initialize = native.ggml_quantize_init
        self._initialize.argtypes = [ctypes.c_int]
        self._initialize.restype = None
        self._pool = ThreadPoolExecutor(threads)
        self._own = threading.local()

    def quantize(
        self, type_name: str, source: str, rows: NDArray[np.uint8], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8] | None:
        """Quantize rows.

        Args:
            type_name: a name of `TYPES`.
            source: type of the values in the bytes: F32, F16 or BF16.
            rows: uint8 [rows, bytes of a row of the source], C order.
            importance: float32 [columns], the importance of each column; None for equal importance.

        Returns:
            uint8 [rows, bytes of a row]; None when a value is not finite.

        Raises:
            NativeError: the kernel wrote an unexpected number of bytes.
        """
        kind = TYPES[type_name]
        count, columns = rows.shape[0], rows.shape[1] // SOURCE_BYTES[source]
        out = np.empty((count, kind.row_bytes(columns)), np.uint8)
        self._initialize(kind.id)
        weights = None if importance is None else importance.ctypes.data

        def block(start: int) -> int:
            values = self._floats(source, rows[start : start + step])
            if not np.isfinite(values).all():
                return -1
            target = out.ctypes.data + start * out.shape[1]
            height = min(step, count - start)
            return int(self._quantize(kind.id, values.ctypes.data, target, 0, height, columns, weights))

        step = max(1, BLOCK_VALUES // columns)
        written = list(self._pool.map(block, range(0, count, step)))
        if -1 in written:
            return None
        if sum(written) != out.nbytes:
            raise NativeError(
                f"the {type_name} kernel wrote {sum(written)} bytes for {count} x {columns}; expected {out.nbytes}"
            )
        return out

    def _floats(self, source: str, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [rows, bytes of a row] → float32 [values], in a buffer that the thread reuses, which saves page
        faults."""
        if source == "F32":
            return np.frombuffer(rows, "<f4")
        raw = np.frombuffer(rows, "<u2")
        buffer = getattr(self._own, "buffer", None)
        if buffer is None or buffer.size < raw.size:
            buffer = self._own.buffer = np.empty(raw.size, np.float32)
        values: NDArray[np.float32] = buffer[: raw.size]
        if source == "F16":
            np.copyto(values, raw.view("<f2"))
        else:
            np.left_shift(raw, np.uint32(16), out=values.view("<u4"), dtype=np.uint32)
        return values
