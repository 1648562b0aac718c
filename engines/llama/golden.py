"""The self-test of a quantizer: fixed numbers must give the recorded bytes, and bytes must decode to the numbers.

The library's kernels are exported by accident, not by contract, so nothing they return is trusted before this.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.library import NativeError
from recipes import quantities

ROWS, COLUMNS = 3, 512
RMS_LIMITS = {
    "Q8_0": 0.006, "Q6_K": 0.025, "Q5_K": 0.05, "Q5_1": 0.05, "Q5_0": 0.06, "Q4_K": 0.1, "Q4_0": 0.12, "Q4_1": 0.1,
    "IQ4_NL": 0.1, "IQ4_XS": 0.1, "Q3_K": 0.2, "IQ3_S": 0.2, "IQ3_XXS": 0.25, "Q2_K": 0.4, "IQ2_S": 0.4, "IQ2_XS": 0.45,
    "IQ2_XXS": 0.5, "TQ1_0": 0.8, "TQ2_0": 0.8,
}  # fmt: skip
"""Greatest RMS error of a decoded value, as a share of the values' own RMS."""

WEIGHTED = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
"""Types whose kernels are tested with importances: some of them abort without."""

GOLDEN: dict[str, dict[str, str]] = {
    "x86_64": {
        "Q8_0": "5f891072b741b02a1be04c746d23c27d",
        "Q6_K": "871d8c47dacba426bb1ff8912653e918",
        "Q5_K": "be66fedc7509eaf0e8f91b701aa10e75",
        "Q5_1": "d4057f08f2ff8edab69322e9ffce9d7e",
        "Q5_0": "bfe0fd05c21cbf904df6bc351aa8ca5b",
        "Q4_K": "8f73c73586230bb86d859998d0880f66",
        "Q4_0": "a42616420486af0db5a3cfffc11b8573",
        "Q4_1": "2afc4a32ab99d8813bffa83389e11033",
        "IQ4_NL": "20d7329a395d2aaadbbdaacff2945ec9",
        "IQ4_XS": "2a62e3a42a853cf8fee724bccef1ab36",
        "Q3_K": "a7127211a629461ffdd280582de884a4",
        "IQ3_S": "2ba0eeac49c5dfdb31efefead765fbea",
        "IQ3_XXS": "3c19d8073e43fe173ff5f28f990071ae",
        "Q2_K": "c9ba2d4f5e0b4134880c121039a018d3",
        "IQ2_S": "5d62c1939b1657d5c38e3280ed892d02",
        "IQ2_XS": "2295bc02f0e66049ca14234ce22adcb1",
        "IQ2_XXS": "0f8c80abd3928dc56f423c7942ab103c",
        "TQ1_0": "d115b15e85000fa50790f934885e0a56",
        "TQ2_0": "087d4deeb64e9bc746770a2b13499fe9",
    }
}
"""Digests per kind of machine; float contraction may differ between kinds, so each has its own."""


class Quantizes(Protocol):
    """Whatever turns float rows into blocks."""

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns], and float32 [columns] saying how much each column matters → uint8 [rows, bytes of a row]."""
        ...


def golden_rows() -> NDArray[np.float32]:
    """Fixed values in [-1, 1) from an integer recurrence, each row of another scale: the same on every machine."""
    state, values = 12345, []
    for _ in range(ROWS * COLUMNS):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state / 2**30 - 1)
    scales = np.array([[1.0], [0.03125], [4.0]], np.float32)
    return np.asarray(values, np.float32).reshape(ROWS, COLUMNS) * scales


def golden_importance() -> NDArray[np.float32]:
    """A fixed importance of each column, between 1 and 4."""
    return np.asarray([1 + (7 * column % 13) / 4 for column in range(COLUMNS)], np.float32)


def digest(quantized: NDArray[np.uint8]) -> str:
    """The bytes' SHA-256, short."""
    return hashlib.sha256(quantized.tobytes()).hexdigest()[:32]


def check_golden(quantizer: Quantizes, type_name: str) -> str:
    """Test one type of a quantizer.

    Returns:
        "bytes" when the recorded bytes came back; "error bound" on a kind of machine for which none are recorded.

    Raises:
        NativeError: other bytes, or bytes that do not decode to the numbers.
    """
    rows = golden_rows()
    quantized = quantizer.quantize(type_name, rows, golden_importance() if type_name in WEIGHTED else None)
    decoded = gguf.quants.dequantize(quantized, gguf.GGMLQuantizationType[type_name])
    error = float(np.sqrt(np.mean(np.square(decoded - rows)) / np.mean(np.square(rows))))
    limit = RMS_LIMITS[type_name]
    if not error <= limit:
        raise NativeError(
            f"self-test of the {type_name} kernel: decoded values are off by {quantities.number(error, 3)} (limit {quantities.exact(limit)})"
        )
    expected = GOLDEN.get(platform.machine(), {}).get(type_name)
    if expected is None:
        return "error bound"
    if digest(quantized) != expected:
        raise NativeError(f"self-test of the {type_name} kernel: bytes differ from the recorded ones")
    return "bytes"
