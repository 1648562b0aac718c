"""Greedy text from a model between two steps: it changes no weight, draws no random number, and restores the mode."""

from __future__ import annotations

from typing import Any

import torch

MOST_CHARACTERS = 8000


@torch.no_grad()
def greedy_text(model: Any, tokenizer: Any, ids: torch.Tensor, max_new_tokens: int) -> str:
    """The text that the model continues `ids` with (int64 [1, length]), until an end token or the limit."""
    was_training = model.training
    model.eval()
    try:
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
        )
    finally:
        model.train(was_training)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))[:MOST_CHARACTERS]
