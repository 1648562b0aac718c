"""Attention of several rows in one sequence on a GPU: one call of torch's flash attention, whatever the rows' lengths.

Row by row, each layer starts several kernels for each row, and cuDNN, which torch prefers on a Hopper GPU, first plans
every length that it has not seen: a tenth of a second, again and again while a training meets new lengths.

Of the two backward kernels the one is taken that gives the same bits each time; the other adds up in the order in which
its blocks end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_WIDEST_HEAD, _MULTIPLE = 256, 8
"""Widths of a head that the kernels take."""
_FIRST_CAPABILITY = (8, 0)
"""Ampere."""


def takes(query: torch.Tensor, key: torch.Tensor, *, dropout: float, is_causal: bool) -> bool:
    """Whether the kernels compute this attention: [1, heads, tokens, width], of a GPU, in 16 bits."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[0] == 1
        and width <= _WIDEST_HEAD
        and width % _MULTIPLE == 0
        and query.shape[1] % key.shape[1] == 0
        and dropout == 0.0
        and is_causal
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query.device) >= _FIRST_CAPABILITY
    )


def attention_within_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    """Causal attention of each row to itself, [1, heads, tokens, width] to [1, tokens, heads, width].

    Args:
        query: of any number of heads.
        key: of a number of heads that divides that of `query`.
        value: as `key`.
        ends: 0 and the end of each row, int32 [rows + 1], on the GPU.
        longest: tokens of the longest row.
        scale: factor of the products; None: 1 / sqrt(width).
    """
    flat = [one[0].transpose(0, 1) for one in (query, key, value)]
    found: torch.Tensor = _WithinRows.apply(*flat, ends, longest, scale)
    return found[None]


class _WithinRows(torch.autograd.Function):
    """[tokens, heads, width] each."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        ends: torch.Tensor,
        longest: int,
        scale: float | None,
    ) -> torch.Tensor:
        result, sums, *random, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=scale
        )
        ctx.save_for_backward(query, key, value, result, sums, ends, *random)
        ctx.longest, ctx.scale = longest, scale
        return result

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        query, key, value, result, sums, ends, *random = ctx.saved_tensors
        longest = ctx.longest
        with _same_bits():
            found = torch.ops.aten._flash_attention_backward(
                above.contiguous(), query, key, value, result, sums, ends, ends, longest, longest, 0.0, True, *random,
                scale=ctx.scale,
            )  # fmt: skip
        return (*found, None, None, None)


@contextmanager
def _same_bits() -> Iterator[None]:
    """The kernel asks torch's setting which way it computes."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
