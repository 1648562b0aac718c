"""Decides whether a merge of a model with tied embeddings keeps them tied, from what each adapter trained.

PEFT trains the two sides together (ensure_weight_tying, trainable_token_indices of the embedding), or one of them, or
both with different values. Its own merge always writes to the one matrix. Here a side keeps what was trained; only a
LoRA of one side follows PEFT, with a warning, unless the operator asks for two matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.hf_model.tensor_files import TensorInfo
from exporters.lora.adapter import Adapter, Change, TokenRows, are_equal, read_matrix
from recipes.problems import OperatorError

ONE_SIDE = (
    "the adapter changes the embedding or the head of a model in which they share one matrix: the merge changes both, "
    "as PEFT does, and the model answers differently than in training; set untie_word_embeddings = true to keep what "
    "was trained"
)


@dataclass(frozen=True)
class Ends:
    """Names of the two matrices with a row for each token."""

    embedding: str
    head: str


@dataclass(frozen=True)
class Tie:
    """What becomes of the tie. `kept`: the two still share one matrix; `warning`: what an operator should know."""

    kept: bool
    warning: str = ""


def follow_tie(adapters: Sequence[Adapter], shape: tuple[int, ...], ends: Ends, *, untie: bool) -> Tie:
    """Assign every change of the two ends to the matrices of the merged model; modifies the adapters.

    Args:
        adapters: the adapters.
        shape: of the base model's shared matrix.
        ends: the names.
        untie: give the model two matrices if an adapter changes only one side by LoRA.

    Raises:
        OperatorError: an adapter changes both sides differently by LoRA, and `untie` is not set.
    """
    shared = [_drop_equal_head(adapter, ends) for adapter in adapters]
    shared = [
        is_shared or _is_shared(adapter, shape, ends) for is_shared, adapter in zip(shared, adapters, strict=True)
    ]
    sides = [set(adapter.targets) & {ends.embedding, ends.head} for adapter in adapters]
    apart = [bool(side) and not is_shared for side, is_shared in zip(sides, shared, strict=True)]
    by_lora = [part and not _splits(adapter, ends) for part, adapter in zip(apart, adapters, strict=True)]
    if not any(apart):
        return Tie(kept=True)
    if apart == by_lora and not untie:
        for adapter, part in zip(adapters, by_lora, strict=True):
            if part:
                _move_to_embedding(adapter, ends)
        return Tie(kept=True, warning=ONE_SIDE)
    for adapter, is_shared in zip(adapters, shared, strict=True):
        if is_shared:
            _copy_to_head(adapter, ends)
        _copy_matrix_under_change(adapter.replacements, adapter.changes, ends)
    return Tie(kept=False)


def _drop_equal_head(adapter: Adapter, ends: Ends) -> bool:
    """Remove from an adapter what it stores of the head, if that equals what it stores of the embedding; return
    whether both were trained as one."""
    embedding, head = ends.embedding, ends.head
    changes, rows, full = adapter.changes, adapter.token_rows, adapter.replacements
    both = {embedding, head}
    same_change = both <= set(changes) and _is_same_change(changes[embedding], changes[head])
    same_rows = both <= set(rows) and _is_same_rows(rows[embedding], rows[head])
    alone = (same_change or head not in changes) and (same_rows or head not in rows)
    same_full = alone and both <= set(full) and are_equal(full[embedding], full[head])
    parts: list[tuple[dict[str, Any], bool]] = [(changes, same_change), (rows, same_rows), (full, same_full)]
    for part, same in parts:
        if same:
            del part[head]
    return same_change or same_rows or same_full


def _is_same_rows(embedding: TokenRows, head: TokenRows) -> bool:
    return embedding.indices == head.indices and are_equal(embedding.tensor, head.tensor)


def _is_same_change(embedding: Change, head: Change) -> bool:
    """Whether the two matrices of the head are those of the embedding, each transposed (PEFT's tied adapters)."""
    if not embedding.transposed or head.transposed or embedding.scale != head.scale:
        return False
    if embedding.magnitude is not None or head.magnitude is not None:
        return False
    pairs = ((embedding.a, head.b), (embedding.b, head.a))
    return all(
        one is not None and other is not None and np.array_equal(read_matrix(one).T, read_matrix(other))
        for one, other in pairs
    )


def _is_shared(adapter: Adapter, shape: tuple[int, ...], ends: Ends) -> bool:
    """Whether an adapter that stores only the embedding means both sides: rows of tokens, or a resized vocabulary."""
    if any(ends.head in part for part in _parts(adapter)):
        return False
    full = adapter.replacements.get(ends.embedding)
    resized = full is not None and full.shape != shape and ends.embedding not in adapter.changes
    return resized or ends.embedding in adapter.token_rows


def _splits(adapter: Adapter, ends: Ends) -> bool:
    """Whether an adapter trained one side, or both differently, in another way than by LoRA."""
    both = {ends.embedding, ends.head}
    return bool(both & set(adapter.token_rows)) or bool((both & set(adapter.replacements)) - set(adapter.changes))


def _move_to_embedding(adapter: Adapter, ends: Ends) -> None:
    """Turn changes of a tied model's head into changes of its embedding."""
    for found in _parts(adapter):
        if ends.head in found:
            if ends.embedding in found:
                raise OperatorError(
                    "the adapter changes the embedding and the head, which share one matrix in this base model",
                    "set untie_word_embeddings = true, which gives the merged model two matrices",
                )
            found[ends.embedding] = found.pop(ends.head)


def _copy_to_head(adapter: Adapter, ends: Ends) -> None:
    for found in _parts(adapter):
        if ends.embedding in found and ends.head not in found:
            found[ends.head] = found[ends.embedding]


def _copy_matrix_under_change(full: dict[str, TensorInfo], changes: dict[str, Change], ends: Ends) -> None:
    """PEFT stores the matrix under a LoRA of one side with it; the other side has the same matrix."""
    for one, other in ((ends.embedding, ends.head), (ends.head, ends.embedding)):
        if one in full and one in changes and other not in full:
            full[other] = full[one]


def _parts(adapter: Adapter) -> tuple[dict[str, Any], ...]:
    return adapter.changes, adapter.replacements, adapter.token_rows
