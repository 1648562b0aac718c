"""`python -m engines.llama.quantize_worker FD`: quantize rows in shared memory.

Requests and their answers:

- `{"open": threads, "library"}` → the library's record
- `{"type", "source", "at", "rows", "row_bytes"}`, with the importances as payload (one float32 for each column) or
  without → the bytes, or `{"not_finite": true}` when a value is not finite
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
            self._map = mmap.mmap(self._shared, 0)  # map its present size; the stage may have grown it
        rows = np.frombuffer(self._map, np.uint8, size, at).reshape(header["rows"], header["row_bytes"])
        importance = np.frombuffer(payload, "<f4") if payload else None
        made = self.kernels.quantize(header["type"], header["source"], rows, importance)
        return ({"not_finite": True}, b"") if made is None else ({}, made.data.cast("B"))


if __name__ == "__main__":
    serve(_Worker(int(sys.argv[1])))
