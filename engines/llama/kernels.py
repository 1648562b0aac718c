"""llama.cpp's quantization kernels by ctypes; imported in the quantize worker only."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import TYPES
from engines.llama.library import NativeError, find_library, open_library


class Kernels:
    """`ggml_quantize_chunk` of one library."""

    def __init__(self, threads: int) -> None:
        """Open the library. Rows are divided among `threads`: ctypes releases the interpreter's lock in a call."""
        self.library = find_library()
        native = open_library(self.library)
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
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Quantize rows.

        Args:
            type_name: a name of `TYPES`.
            rows: float32, [rows, columns], C order.
            importance: float32, [columns], how much each column matters; None for all alike.

        Returns:
            uint8, [rows, bytes of a row].

        Raises:
            NativeError: the kernel wrote another number of bytes than the type has.
        """
        kind = TYPES[type_name]
        count, columns = rows.shape
        out = np.empty((count, kind.row_bytes(columns)), np.uint8)
        self._initialize(kind.id)

        def part(bounds: tuple[int, int]) -> int:
            start, stop = bounds
            source = rows.ctypes.data + start * columns * 4
            target = out.ctypes.data + start * out.shape[1]
            weights = None if importance is None else importance.ctypes.data
            return int(self._quantize(kind.id, source, target, 0, stop - start, columns, weights))

        edges = np.linspace(0, count, min(self._threads, count) + 1).astype(int).tolist()
        written = sum(self._pool.map(part, pairwise(edges)))
        if written != out.nbytes:
            raise NativeError(
                f"the {type_name} kernel wrote {written} bytes for {count} x {columns}; expected {out.nbytes}"
            )
        return out
