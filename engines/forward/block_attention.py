"""Attention of several rows in one sequence on a processor that multiplies in bfloat16: matrix products over blocks.

Without AMX, torch's own kernel for processors reaches a fifth of what a matrix product in bfloat16 reaches here. With
AMX it has faster ones, and is kept.

Scores and their softmax are float32, as in torch's kernel. Probabilities and what comes back to them are rounded to
bfloat16 for the products; gradients are about as close to exact ones as those of torch's kernel. A block of queries
attends to its row's tokens up to the block's end, so only scores within a block are computed and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from engines.processor import AVX512_BF16, native_bfloat16

BLOCK = 192
"""Queries of a block: smaller ones start more products, larger ones mask more scores. 128 to 256 differ little."""
STEP = 32
"""Rows are filled up with zeros to a multiple of this. oneDNN compiles a kernel for each shape and keeps few of them:
with shapes of each length, layer after layer would compile those that the layer before has displaced."""
KEPT_TOKENS = 1024
"""Rows of up to this length keep their probabilities for the backward pass; longer ones compute them again. They take a
byte for each head, token, and token of its row: here a quarter of what a layer keeps."""

aten: Any = torch.ops.aten


def takes(query: torch.Tensor, key: torch.Tensor, *, dropout: float, is_causal: bool) -> bool:
    """Whether this attention is computed here: [1, heads, tokens, width], on a processor, in bfloat16, by the type of
    the query or by autocast."""
    return (
        query.device.type == "cpu"
        and (query.dtype is torch.bfloat16 or _is_rounded(query))
        and query.shape[0] == 1
        and query.shape[1] % key.shape[1] == 0
        and dropout == 0.0
        and is_causal
        and is_faster()
    )


def _is_rounded(query: torch.Tensor) -> bool:
    """Whether autocast gives torch's own attention this query in bfloat16."""
    rounds = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return rounds and query.dtype is torch.float32


@cache
def is_faster() -> bool:
    """Whether this processor has the instructions of AVX-512 for bfloat16, and no AMX. Others are not measured."""
    return native_bfloat16() == AVX512_BF16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def attention_within_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[tuple[int, int]], scale: float | None
) -> torch.Tensor:
    """Causal attention of each row to itself, [1, heads, tokens, width] to [1, tokens, heads, width].

    Args:
        query: of any number of heads.
        key: of a number of heads that divides that of `query`.
        value: as `key`.
        bounds: where each row begins and ends; together they are the whole sequence.
        scale: factor of the products; None: 1 / sqrt(width).
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        given = (one.to(torch.bfloat16) for one in (query, key, value))
        result: torch.Tensor = _WithinRows.apply(*given, bounds, factor)
    return result


class _WithinRows(torch.autograd.Function):
    """Heads that share a key are one matrix in the products: [heads of keys, sharing * queries, width]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: Sequence[tuple[int, int]],
        scale: float,
    ) -> torch.Tensor:
        result = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        queries, into = _sharing(query, key), _sharing(result.transpose(1, 2), key)
        kept: list[torch.Tensor] = []
        for start, end in bounds:
            keys, values = _filled(key[0, :, start:end]).float(), _filled(value[0, :, start:end])
            for first, last in _blocks(end - start):
                at = slice(start + first, min(end, start + last))
                shares = _shares(_filled(queries[:, :, at]), keys[:, :last], scale)
                if any(ctx.needs_input_grad) and end - start <= KEPT_TOKENS:
                    kept.append(shares)
                _put(torch.bmm(shares, values[:, :last]), into[:, :, at])
        ctx.save_for_backward(query, key, value, *kept)
        ctx.bounds, ctx.scale = bounds, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        query, key, value, *kept = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(one) for one in (query, key, value))
        queries, above = _sharing(query, key), _sharing(above.transpose(1, 2), key)
        into = _sharing(of_query, key)
        for start, end in reversed(ctx.bounds):
            keys, values = (_filled(one[0, :, start:end]) for one in (key, value))
            wide = None if end - start <= KEPT_TOKENS else keys.float()
            sums: list[torch.Tensor] = []
            for first, last in reversed(_blocks(end - start)):
                at = slice(start + first, min(end, start + last))
                asking, back = _filled(queries[:, :, at]), _filled(above[:, :, at]).flatten(1, 2)
                shares = kept.pop() if wide is None else _shares(asking, wide[:, :last], ctx.scale)
                of_scores = _through_softmax(torch.bmm(back, values[:, :last].transpose(1, 2)), shares)
                _put(_scaled_product(of_scores, keys[:, :last], ctx.scale), into[:, :, at])
                of_scores, shares = of_scores.transpose(1, 2), shares.transpose(1, 2)
                parts = (torch.bmm(of_scores, asking.flatten(1, 2)), torch.bmm(shares, back))
                if sums:
                    for total, part in zip(sums, parts, strict=True):
                        total[:, :last] += part
                else:  # the last block attends to the whole row
                    sums = [part.float() for part in parts]
            of_key[0, :, start:end] = sums[0].mul_(ctx.scale)[:, : end - start]
            of_value[0, :, start:end] = sums[1][:, : end - start]
        return of_query, of_key, of_value, None, None


def _blocks(length: int) -> list[tuple[int, int]]:
    """Where the blocks of a row begin and end; the last one with its filling."""
    filled = _multiple(length)
    return [(first, min(filled, first + BLOCK)) for first in range(0, length, BLOCK)]


def _multiple(length: int) -> int:
    return -(-length // STEP) * STEP


def _filled(values: torch.Tensor) -> torch.Tensor:
    """[…, tokens, width] with zeros after the tokens, to a multiple of `STEP`; contiguous. A query of zeros has no
    gradient above it, and a key of zeros is later than all queries."""
    length = values.shape[-2]
    if length % STEP == 0:
        return values.contiguous()
    found = values.new_zeros(*values.shape[:-2], _multiple(length), values.shape[-1])
    found[..., :length, :] = values
    return found


def _shares(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """What each query takes of each value up to its own, the softmax of its scores: bfloat16 [heads of keys, sharing *
    queries, keys].

    Args:
        queries: [heads of keys, sharing, queries, width]; the last is that of the last key.
        keys: float32 [heads of keys, keys, width].
        scale: factor of the products.
    """
    count = queries.shape[2]
    scores = torch.bmm(queries.float().mul_(scale).flatten(1, 2), keys.transpose(1, 2))
    scores.view(*queries.shape[:3], -1)[..., -count:] += _later(BLOCK)[:count, :count]
    aten._softmax.out(scores, -1, False, out=scores)
    return scores.to(torch.bfloat16)


def _through_softmax(of_shares: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The gradient of scores, written where that of the shares was."""
    found: torch.Tensor = aten._softmax_backward_data.out(of_shares, shares, -1, shares.dtype, grad_input=of_shares)
    return found


def _scaled_product(one: torch.Tensor, other: torch.Tensor, scale: float) -> torch.Tensor:
    """Rounded once."""
    unread = one.new_empty(len(one), one.shape[1], other.shape[2])
    return torch.baddbmm(unread, one, other, beta=0, alpha=scale)


@cache
def _later(count: int) -> torch.Tensor:
    """Minus infinity where a key is after the query: float32 [count, count]."""
    return torch.full((count, count), -torch.inf).triu(1)


def _sharing(heads: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[1, heads, tokens, width] as [heads of keys, sharing, tokens, width]."""
    return heads[0].unflatten(0, (key.shape[1], -1))


def _put(values: torch.Tensor, into: torch.Tensor) -> None:
    """Write [heads of keys, sharing * queries, width] into [heads of keys, sharing, tokens, width] without filling."""
    into.copy_(values.unflatten(1, (into.shape[1], -1))[:, :, : into.shape[2]])
