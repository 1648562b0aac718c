"""Rounds the inputs of matrix products as llama.cpp's CPU kernels do, to measure how much that moves a model's output.

The kernel of a tensor type multiplies its rows with inputs of one type (`vec_dot_type` in ggml-cpu.c): F16 and BF16
with their own, blocks of 32 with Q8_0 or Q8_1, blocks of 256 with Q8_K.
"""

from __future__ import annotations

from typing import Any

from engines.llama.ggml_types import TYPES

_LARGEST = 127


def rounded(values: Any, tensor_type: str) -> Any:
    """Inputs, float32 [..., columns], as the kernel of a tensor type reads them.

    F32 counts as F16: float32 sums in another order move a model less than that, and no kernel is more exact.
    """
    if tensor_type in ("F32", "F16"):
        return values.half().float()
    if tensor_type == "BF16":
        return values.bfloat16().float()
    block = TYPES[tensor_type].block
    # Q8_0 and Q8_1 store their scale as a half, Q8_K as a float.
    return _eight_bits(values, block, half_scale=block == 32)


def _eight_bits(values: Any, block: int, *, half_scale: bool) -> Any:
    """Round each block to whole multiples of 1/127 of its largest value; see quantize_row_q8_0 in ggml-quants.c."""
    import torch

    blocks = values.unflatten(-1, (values.shape[-1] // block, block))
    scale = blocks.abs().amax(-1, keepdim=True) / _LARGEST
    steps = torch.where(scale > 0, blocks / scale, torch.zeros_like(blocks)).round()
    kept = scale.half().float() if half_scale else scale
    return (steps * kept).flatten(-2)
