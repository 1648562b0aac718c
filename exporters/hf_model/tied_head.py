"""Whether a model's output head is its embedding: what config.json says, and what the folder has.

transformers ties them only if the folder has no separate head, or an equal one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters.hf_model.architectures import known_architecture
from exporters.hf_model.family import Settings
from exporters.hf_model.tensor_files import Weights, row_chunks


def with_own_head(settings: Settings, weights: Weights) -> dict[str, Any]:
    """The settings with `tie_word_embeddings` false if the folder has a head that differs from the embedding.

    Args:
        settings: the language model's.
        weights: the folder's tensors.
    """
    family = known_architecture(settings)
    if family is None or not settings["tie_word_embeddings"]:
        return dict(settings)
    stored = family.names_in(weights.tensors)
    names = stored.get(family.head), stored.get(family.embedding)
    if None in names or _equal(weights, *names):
        return dict(settings)
    return {**settings, "tie_word_embeddings": False}


def _equal(weights: Weights, head: str | None, embedding: str | None) -> bool:
    assert head is not None
    assert embedding is not None
    info = weights.tensors[head]
    if info.shape != weights.tensors[embedding].shape:
        return False
    return all(
        np.array_equal(weights.read_rows(head, start, stop), weights.read_rows(embedding, start, stop))
        for start, stop in row_chunks(info.rows, info.columns)
    )
