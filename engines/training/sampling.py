"""Greedy text from a model between two steps: it changes no weight, draws no random number, and restores the mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

MOST_CHARACTERS = 8000


@dataclass(frozen=True)
class Sample:
    """A greedy continuation: its text, its new tokens, and whether an end token ended it before the limit."""

    text: str
    tokens: int
    ended: bool


def greedy_text(model: Any, tokenizer: Any, ids: torch.Tensor, max_new_tokens: int) -> str:
    """The text that the model continues `ids` with (int64 [1, length]), until an end token or the limit."""
    return greedy_sample(model, tokenizer, ids, max_new_tokens).text


@torch.no_grad()
def greedy_sample(model: Any, tokenizer: Any, ids: torch.Tensor, max_new_tokens: int) -> Sample:
    """What the model continues `ids` with (int64 [1, length]), until an end token or the limit."""
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
    new = made[0, ids.shape[1] :]
    text = str(tokenizer.decode(new, skip_special_tokens=True))[:MOST_CHARACTERS]
    return Sample(text, len(new), len(new) > 0 and int(new[-1]) in _end_ids(model))


def _end_ids(model: Any) -> set[int]:
    """The tokens at which generation ends."""
    named = getattr(model.generation_config, "eos_token_id", None)
    return {int(one) for one in (named if isinstance(named, list) else [named]) if one is not None}
