"""The tensor types of GGUF that this product writes: ids, block sizes, and bytes. No dependency."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """One ggml type: `block` values of a row are stored in `block_bytes` bytes."""

    name: str
    id: int
    block: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that one value takes."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row.

        Raises:
            ValueError: the width is not a whole number of blocks.
        """
        if columns % self.block:
            raise ValueError(f"{self.name} stores blocks of {self.block} values; a row of {columns} does not divide")
        return columns // self.block * self.block_bytes


# Ids and layouts: enum ggml_type and the block structs of ggml-common.h.
TYPES = {
    kind.name: kind
    for kind in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("BF16", 30, 1, 2),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q8_0", 8, 32, 34),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("TQ1_0", 34, 256, 54),
        TensorType("TQ2_0", 35, 256, 66),
    )
}
