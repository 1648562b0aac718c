"""Attention over several rows in one sequence: each row attends to itself only.

It is torch's scaled dot product attention as transformers calls it, once for each row, so there is neither a mask nor
work that a mask would discard; on a GPU, in 16 bits, it is one call for all rows. Outside of `rows_in_sequence` it is
transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from engines.forward import block_attention, flash_rows

NAME = "cockpit_rows"
"""The implementation's name in a model's configuration."""
OWN = "sdpa"
"""The implementation that it replaces."""


class _Present:
    """Where the rows of the present sequence begin and end. One process trains one model; recomputation of activations
    happens in a thread of autograd, so this is no variable of a thread."""

    bounds: Sequence[tuple[int, int]] = ()
    ends: torch.Tensor | None = None
    """0 and the ends of the rows on the GPU, once a layer has asked for them"""
    several = False
    """there are bounds; compiled code asks this only, so it does not depend on the lengths"""
    attention: Callable[..., torch.Tensor]


@contextmanager
def rows_in_sequence(lengths: Sequence[int]) -> Iterator[None]:
    """The sequences of forward and backward passes meanwhile consist of rows of these lengths, in tokens."""
    before = _Present.bounds, _Present.several, _Present.ends
    _Present.bounds, _Present.several, _Present.ends = list(pairwise(accumulate(lengths, initial=0))), True, None
    try:
        yield
    finally:
        _Present.bounds, _Present.several, _Present.ends = before


@contextmanager
def one_row() -> Iterator[None]:
    """Sequences meanwhile are one row each, also within `rows_in_sequence`."""
    before = _Present.bounds, _Present.several, _Present.ends
    _Present.bounds, _Present.several, _Present.ends = (), False, None
    try:
        yield
    finally:
        _Present.bounds, _Present.several, _Present.ends = before


def rows_now() -> Sequence[tuple[int, int]] | None:
    """Where the rows of the present sequence begin and end; None for a sequence that is one row."""
    return _Present.bounds


def rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' interface has it: [1, heads, length, width] to [1, length, heads, width].

    Raises:
        ValueError: the model has a mask of its own, such as Doge's, which depends on the content. `_mask` gives none.
    """
    if not _Present.several:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return result
    if attention_mask is not None or kwargs.get("position_bias") is not None:
        raise ValueError("the model adds values of its own to the scores of several rows")
    return _Present.attention(module, query, key, value, **kwargs), None


def keep_out_of_compiled_code() -> None:
    """Compiled layers call the attention of several rows as it is written: its loop is another one in each batch."""
    _Present.attention = staticmethod(torch.compiler.disable(_within_rows))


def _each_row(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    rows = [
        sdpa_attention_forward(
            module, query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], None, **kwargs
        )[0]
        for start, end in _Present.bounds
    ]
    return torch.cat(rows, dim=1)


def _within_rows(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    tokens = _Present.bounds[-1][1] if _Present.bounds else 0
    if query.shape[2] != tokens:  # a kernel would read beyond the sequence
        raise ValueError(f"a sequence of {query.shape[2]} tokens where the rows have {tokens}")
    is_causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    dropout = float(kwargs.get("dropout") or 0.0)
    if block_attention.takes(query, key, dropout=dropout, is_causal=causal):
        return block_attention.attention_within_rows(query, key, value, _Present.bounds, kwargs.get("scaling"))
    if flash_rows.takes(query, key, dropout=dropout, is_causal=causal):
        longest = max(end - start for start, end in _Present.bounds)
        return flash_rows.attention_within_rows(query, key, value, _ends(query.device), longest, kwargs.get("scaling"))
    return _each_row(module, query, key, value, **kwargs)


def _ends(device: torch.device) -> torch.Tensor:
    """0 and the ends of the rows, int32, copied once for all layers and without waiting for the GPU."""
    if _Present.ends is None:
        ends = torch.tensor([0, *(end for _, end in _Present.bounds)], dtype=torch.int32)
        _Present.ends = ends.pin_memory().to(device, non_blocking=True)
    return _Present.ends


_Present.attention = staticmethod(_within_rows)


def _mask(*args: Any, **kwargs: Any) -> Any:
    return sdpa_mask(*args, **kwargs) if not _Present.several else None


AttentionInterface.register(NAME, rows_attention)
AttentionMaskInterface.register(NAME, _mask)
