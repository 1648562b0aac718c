"""Noise on the embeddings during training (NEFTune, arXiv 2310.05914).

Each value of a row's embeddings gets uniform noise of at most alpha / sqrt(tokens * width). transformers' own hook
takes the length of the whole sequence for the tokens, which would make the noise of several rows in one sequence too
small; here each row has that of its own length. Of padded rows it is the length with the padding, as in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from engines.forward.arrangement import causal_model
from engines.forward.rows_attention import rows_now


@contextmanager
def noisy_embeddings(model: Any, alpha: float | None) -> Iterator[None]:
    """Within it, the embeddings of a model in training mode have noise; without `alpha`, nothing changes.

    The noise is drawn from the global random state of the device.
    """
    if alpha is None:
        yield
        return

    def add(module: torch.nn.Module, _given: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded + _noise(embedded, alpha) if module.training else embedded

    handle = causal_model(model).get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _noise(embedded: torch.Tensor, alpha: float) -> torch.Tensor:
    """Uniform noise for embeddings, [batch, tokens, width]."""
    noise = torch.empty_like(embedded).uniform_(-1.0, 1.0)
    width, rows = embedded.shape[2], rows_now() or [(0, embedded.shape[1])]
    for start, end in rows:
        noise[:, start:end] *= alpha / math.sqrt((end - start) * width)
    return noise
