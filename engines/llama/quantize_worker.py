"""`python -m engines.llama.quantize_worker`: quantize rows of float32 on request.

Requests: `{"open": threads}` → the library's record; `{"type", "rows", "columns", "importance"}` +
float32 values (and, if so said, one importance for each column) → the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.llama.kernels import Kernels
from engines.llama.worker import serve


class _Worker:
    kernels: Kernels

    def __call__(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
        if "open" in header:
            self.kernels = Kernels(header["open"])
            return self.kernels.library.record(), b""
        values, count = np.frombuffer(payload, "<f4"), header["rows"] * header["columns"]
        importance = values[count:] if header["importance"] else None
        rows = values[:count].reshape(header["rows"], header["columns"])
        return {}, self.kernels.quantize(header["type"], rows, importance).tobytes()


if __name__ == "__main__":
    serve(_Worker())
