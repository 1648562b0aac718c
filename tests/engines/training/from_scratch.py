"""Pretraining written by hand: transformers and torch alone, and nothing of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tests.engines.training.by_hand import SEED, ByHand, rate_of, windows

Pieces = Callable[[int], Sequence[Sequence[int]]]
"""The pieces of a window, by its number, that do not see each other."""


def new_model(name: str, config: Mapping[str, Any]) -> Any:
    """A model of transformers' class with new weights by the seed; `config`: its settings as its class names them."""
    import transformers

    from transformers import set_seed  # isort: skip

    set_seed(SEED)
    settings = {"vocab_size": 261, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, **config}
    return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).train()


def whole_windows(tokens: Path, length: int) -> tuple[int, Pieces]:
    """The number of windows of a train split, and each as one piece."""
    ids = np.fromfile(tokens / "train.bin", dtype="<u2").astype(int)
    return len(ids) // length, lambda number: [ids[number * length : (number + 1) * length].tolist()]


def steps(
    model: Any, count: int, pieces: Pieces, stage: Mapping[str, Any], rate: Callable[..., float] = rate_of
) -> Iterator[ByHand]:
    """The steps of a training, one by one; the model is trained on the way.

    Args:
        model: the model with its first weights.
        count: number of windows.
        pieces: their tokens; the first token of a piece is no label.
        stage: the fields.
        rate: the learning rate by the fields and the steps done.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [w for _, w in named if w.dim() > 1], "weight_decay": stage.get("weight_decay", 0.0)},
        {"params": [w for _, w in named if w.dim() == 1], "weight_decay": 0.0},
    ]
    betas = (0.9, stage.get("adam_beta2", 0.999))
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=1e-8, foreach=False)
    size, accumulation = stage["per_device_train_batch_size"], stage["gradient_accumulation_steps"]
    for done, window in zip(range(stage["max_steps"]), windows(count, size, accumulation), strict=False):
        rows = [piece for batch in window for number in batch for piece in pieces(number)]
        labels, total = sum(len(row) - 1 for row in rows), 0.0
        for row in rows:
            if len(row) < 2:
                continue
            ids = torch.tensor([row])
            loss = cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:], reduction="sum")
            (loss / labels).backward()
            total += float(loss.detach()) / labels
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), stage.get("max_grad_norm", 1.0)))
        now = rate(stage, done)
        for group in optimizer.param_groups:
            group["lr"] = now
        optimizer.step()
        optimizer.zero_grad()
        yield ByHand(total, norm, now)


def assert_same_steps(found: Sequence[Any], expected: Sequence[ByHand], within: float = 1e-6) -> None:
    """Losses, norms and rates of step events are those by hand, relative to their size."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert math.isclose(one.loss, other.loss, rel_tol=within), (one.step, one.loss, other.loss)
        assert math.isclose(one.grad_norm, other.grad_norm, rel_tol=10 * within), (one.step, one.grad_norm)
        assert math.isclose(one.learning_rate, other.learning_rate, rel_tol=1e-12), one.step
