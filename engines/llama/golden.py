"""The self-test of a quantizer: fixed numbers must give the recorded bytes, and bytes must decode to the numbers.

The kernels are not a documented interface of the library, so their results are not used before this test passes.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import TYPES
from engines.llama.library import NativeError
from recipes import quantities

ROWS, COLUMNS = 3, 512


class Quantizes(Protocol):
    """A quantizer: it converts float rows to blocks."""

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns], and float32 [columns] importance of each column → uint8 [rows, bytes of a row]."""
        ...


def golden_rows() -> NDArray[np.float32]:
    """float32 [ROWS, COLUMNS]: values in [-1, 1) from an integer recurrence, each row with its own scale; the same on
    every machine."""
    state, values = 12345, []
    for _ in range(ROWS * COLUMNS):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state / 2**30 - 1)
    scales = np.array([[1.0], [0.03125], [4.0]], np.float32)
    return np.asarray(values, np.float32).reshape(ROWS, COLUMNS) * scales


def golden_importance() -> NDArray[np.float32]:
    """A fixed importance of each column between 1 and 4, float32 [COLUMNS]."""
    return np.asarray([1 + (7 * column % 13) / 4 for column in range(COLUMNS)], np.float32)


def digest(quantized: NDArray[np.uint8]) -> str:
    """The first half of the SHA-256 of uint8 [rows, bytes of a row]."""
    return hashlib.sha256(quantized.tobytes()).hexdigest()[:32]


def check_golden(quantizer: Quantizes, type_name: str) -> str:
    """Test one type of a quantizer.

    Returns:
        "bytes" when the bytes equal the recorded ones; "error bound" on a machine type without recorded bytes.

    Raises:
        NativeError: the bytes differ, or do not decode to the numbers.
    """
    kind, rows = TYPES[type_name], golden_rows()
    # Kernels that require an importance abort without it.
    quantized = quantizer.quantize(type_name, rows, golden_importance() if kind.importance == "required" else None)
    decoded = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType[type_name])
    error = float(np.sqrt(np.mean(np.square(decoded - rows)) / np.mean(np.square(rows))))
    if not error <= kind.rms_limit:
        raise NativeError(
            f"self-test of the {type_name} kernel failed: RMS error of the decoded values is "
            f"{quantities.number(error, 3)} (limit {quantities.exact(kind.rms_limit)})"
        )
    expected = kind.digests.get(platform.machine())
    if expected is None:
        return "error bound"
    if digest(quantized) != expected:
        raise NativeError(f"self-test of the {type_name} kernel failed: bytes differ from the recorded ones")
    return "bytes"
