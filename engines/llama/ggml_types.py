"""The GGUF tensor types that Cockpit reads and writes, one row each: layout, quantization, self-test.

A file type (`recipes.file_types`) consists of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from recipes.file_types import ImportanceUse


@dataclass(frozen=True)
class TensorType:
    """One ggml type: `block` values of a row are stored in `block_bytes` bytes.

    Attributes:
        name: ggml's name of the type.
        id: its number in enum ggml_type.
        block: values per block; 1 for types that store each value separately.
        block_bytes: bytes of a block, as in the structs of ggml-common.h.
        importance: how the kernel uses an importance matrix. A required one may be missing for embeddings and heads.
        fallback: the type that llama.cpp stores instead when a row is not a whole number of blocks.
        in_numpy: whether the gguf package can quantize to it without llama.cpp's kernels.
        rms_limit: largest RMS error of decoded values in the self-test, as a share of the values' own RMS.
        digests: first half of the SHA-256 of the self-test's bytes, by machine type; float contraction may differ
            between types.
    """

    name: str
    id: int
    block: int
    block_bytes: int
    importance: ImportanceUse = "used"
    fallback: str = "F16"
    in_numpy: bool = False
    rms_limit: float = 0.0
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether it stores each value separately: F32, F16 and BF16."""
        return self.block == 1

    @property
    def bits_per_weight(self) -> float:
        """Bits per value."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row.

        Raises:
            ValueError: the width is not a whole number of blocks.
        """
        if columns % self.block:
            raise ValueError(f"{self.name}: a row of {columns} values is not a multiple of its block of {self.block}")
        return columns // self.block * self.block_bytes


def _blocks(
    name: str,
    number: int,
    block: int,
    block_bytes: int,
    *,
    rms_limit: float,
    x86_64: str,
    importance: ImportanceUse = "used",
    fallback: str = "F16",
    in_numpy: bool = False,
) -> TensorType:
    return TensorType(name, number, block, block_bytes, importance, fallback, in_numpy, rms_limit, {"x86_64": x86_64})


_ROWS = (
    TensorType("F32", 0, 1, 4, "ignored"),
    TensorType("F16", 1, 1, 2, "ignored"),
    TensorType("BF16", 30, 1, 2, "ignored"),
    _blocks("Q4_0", 2, 32, 18, in_numpy=True, rms_limit=0.12, x86_64="a42616420486af0db5a3cfffc11b8573"),
    _blocks("Q4_1", 3, 32, 20, in_numpy=True, rms_limit=0.1, x86_64="2afc4a32ab99d8813bffa83389e11033"),
    _blocks("Q5_0", 6, 32, 22, in_numpy=True, rms_limit=0.06, x86_64="bfe0fd05c21cbf904df6bc351aa8ca5b"),
    _blocks("Q5_1", 7, 32, 24, in_numpy=True, rms_limit=0.05, x86_64="d4057f08f2ff8edab69322e9ffce9d7e"),
    _blocks(
        "Q8_0",
        8,
        32,
        34,
        importance="ignored",
        in_numpy=True,
        rms_limit=0.006,
        x86_64="5f891072b741b02a1be04c746d23c27d",
    ),
    _blocks("Q2_K", 10, 256, 84, fallback="Q4_0", rms_limit=0.4, x86_64="c9ba2d4f5e0b4134880c121039a018d3"),
    _blocks("Q3_K", 11, 256, 110, fallback="Q4_0", rms_limit=0.2, x86_64="a7127211a629461ffdd280582de884a4"),
    _blocks("Q4_K", 12, 256, 144, fallback="Q5_0", rms_limit=0.1, x86_64="8f73c73586230bb86d859998d0880f66"),
    _blocks("Q5_K", 13, 256, 176, fallback="Q5_1", rms_limit=0.05, x86_64="be66fedc7509eaf0e8f91b701aa10e75"),
    _blocks("Q6_K", 14, 256, 210, fallback="Q8_0", rms_limit=0.025, x86_64="871d8c47dacba426bb1ff8912653e918"),
    _blocks(
        "IQ2_XXS",
        16,
        256,
        66,
        importance="required",
        fallback="IQ4_NL",
        rms_limit=0.5,
        x86_64="0f8c80abd3928dc56f423c7942ab103c",
    ),
    _blocks(
        "IQ2_XS",
        17,
        256,
        74,
        importance="required",
        fallback="IQ4_NL",
        rms_limit=0.45,
        x86_64="2295bc02f0e66049ca14234ce22adcb1",
    ),
    _blocks(
        "IQ3_XXS",
        18,
        256,
        98,
        importance="required",
        fallback="IQ4_NL",
        rms_limit=0.25,
        x86_64="3c19d8073e43fe173ff5f28f990071ae",
    ),
    _blocks(
        "IQ1_S",
        19,
        256,
        50,
        importance="required",
        fallback="IQ4_NL",
        rms_limit=0.55,
        x86_64="3ab03ea5fda9b4dfb2dd7973d00bc702",
    ),
    _blocks("IQ4_NL", 20, 32, 18, rms_limit=0.1, x86_64="20d7329a395d2aaadbbdaacff2945ec9"),
    _blocks("IQ3_S", 21, 256, 110, fallback="IQ4_NL", rms_limit=0.2, x86_64="2ba0eeac49c5dfdb31efefead765fbea"),
    _blocks(
        "IQ2_S",
        22,
        256,
        82,
        importance="required",
        fallback="IQ4_NL",
        rms_limit=0.4,
        x86_64="5d62c1939b1657d5c38e3280ed892d02",
    ),
    _blocks("IQ4_XS", 23, 256, 136, fallback="IQ4_NL", rms_limit=0.1, x86_64="2a62e3a42a853cf8fee724bccef1ab36"),
    _blocks(
        "IQ1_M",
        29,
        256,
        56,
        importance="required",
        fallback="IQ4_NL",
        rms_limit=0.55,
        x86_64="1afaff6c3059c8916b993930f3d17f2a",
    ),
    _blocks(
        "TQ1_0",
        34,
        256,
        54,
        importance="ignored",
        fallback="Q4_0",
        in_numpy=True,
        rms_limit=0.8,
        x86_64="d115b15e85000fa50790f934885e0a56",
    ),
    _blocks(
        "TQ2_0",
        35,
        256,
        66,
        importance="ignored",
        fallback="Q4_0",
        in_numpy=True,
        rms_limit=0.8,
        x86_64="087d4deeb64e9bc746770a2b13499fe9",
    ),
    _blocks(
        "MXFP4",
        39,
        32,
        17,
        importance="ignored",
        in_numpy=True,
        rms_limit=0.2,
        x86_64="85ae4325c3bab3c687d444fa6fd34135",
    ),
)

TYPES: Mapping[str, TensorType] = {row.name: row for row in _ROWS}
PLAIN_TYPES = tuple(row.name for row in _ROWS if row.plain)
