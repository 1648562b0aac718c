"""`python -m engines.llama.quantize_worker FD`: quantize rows that stand in shared memory.

Requests: `{"open": threads, "library"}` → the library's record; `{"type", "source", "at", "rows", "row_bytes"}`, with
one float32
importance for each column as payload, or none → the bytes; `{"not_finite": true}` when a value is not a number.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np

from engines.llama.kernels import Kernels
from engines.llama.worker import serve


class _Worker:
    kernels: Kernels

    def __init__(self, shared: int) -> None:
        self._shared = shared
        self._map: mmap.mmap | None = None

    def __call__(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
        if "open" in header:
            library = Path(header["library"]) if header["library"] else None
            self.kernels = Kernels(header["open"], library)
            return self.kernels.library.record(), b""
        size, at = header["rows"] * header["row_bytes"], header["at"]
        if self._map is None or len(self._map) < at + size:
            self._map = mmap.mmap(self._shared, 0)  # all of it, as large as it is by now
        rows = np.frombuffer(self._map, np.uint8, size, at).reshape(header["rows"], header["row_bytes"])
        importance = np.frombuffer(payload, "<f4") if payload else None
        made = self.kernels.quantize(header["type"], header["source"], rows, importance)
        return ({"not_finite": True}, b"") if made is None else ({}, made.data.cast("B"))


if __name__ == "__main__":
    serve(_Worker(int(sys.argv[1])))
