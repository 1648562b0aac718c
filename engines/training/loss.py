"""Token-weighted loss: batches of labelled tokens, and the mean over them.

Evaluation stages and evaluations during training use the same functions, so their numbers are comparable. A loss is the
sum of the negative log likelihoods (float64) of all scored tokens divided by their number, not a mean of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy

IGNORED = -100
"""Label of a position that the loss does not count (torch's own convention)."""

ANSWERS_PROTOCOL = "answers"
WINDOWS_PROTOCOL = "windows"


class Shard(Protocol):
    """The part of a token shard that `window_batches` uses."""

    tokens: Any

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Example:
    """One tokenized row. `labels` are the ids at positions that the loss counts, `IGNORED` elsewhere; equal lengths."""

    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def scored(self) -> int:
        """Number of tokens that the loss counts; the first token has no context and does not count."""
        return sum(label != IGNORED for label in self.labels[1:])


class Labelled(Protocol):
    """The part of a labelled row that `answer_batches` uses."""

    @property
    def ids(self) -> Sequence[int]:
        """Token ids."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """The ids that the loss counts, `IGNORED` elsewhere."""
        ...


@dataclass(frozen=True)
class Batch:
    """Right-padded tensors, int64 [batch, longest]; `labels` is `IGNORED` at padding and outside answers."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated more than once; their totals are known in advance."""

    walk: Callable[[], Iterator[Batch]]
    scored_tokens: int
    protocol: str
    counts: Mapping[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Batch]:
        return self.walk()


def answer_batches(
    examples: Iterable[Labelled], batch_size: int, protocol: str, counts: Mapping[str, int] | None = None
) -> Batches:
    """Batches of labelled rows for evaluation.

    Args:
        examples: the rows.
        batch_size: rows per batch; it does not change the loss.
        protocol: how the rows were labelled; only losses of the same protocol are comparable.
        counts: counts of the rows, for reports.
    """
    # Similar lengths together: little padding.
    ordered = sorted((Example(one.ids, one.labels) for one in examples), key=lambda example: len(example.input_ids))

    def walk() -> Iterator[Batch]:
        for start in range(0, len(ordered), batch_size):
            yield pad_batch(ordered[start : start + batch_size])

    scored = sum(example.scored for example in ordered)
    return Batches(walk, scored, f"{ANSWERS_PROTOCOL}({protocol})", dict(counts or {}))


def pad_batch(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Right-pad examples to the longest; padding is masked and unlabelled, so `pad_id` can be any token."""
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        mask[row, :length] = 1
        labels[row, :length] = torch.tensor(example.labels, dtype=torch.long)
    return Batch(ids, mask, labels)


def window_batches(shard: Shard, max_length: int, batch_size: int, *, max_tokens: int | None = None) -> Batches:
    """Consecutive windows of a token shard; every token but the first of a window is scored.

    Args:
        shard: an open split; read window by window, never into memory at once.
        max_length: tokens per window; the last window may be shorter.
        batch_size: windows per batch; it does not change the loss.
        max_tokens: stop taking windows when this many tokens are scored.
    """
    starts, scored = [], 0
    for start in range(0, len(shard) - 1, max_length):
        if max_tokens is not None and scored >= max_tokens:
            break
        starts.append(start)
        scored += min(max_length, len(shard) - start) - 1

    def walk() -> Iterator[Batch]:
        for at in range(0, len(starts), batch_size):
            windows = [shard.tokens[start : start + max_length].tolist() for start in starts[at : at + batch_size]]
            yield pad_batch([Example(window, window) for window in windows])

    return Batches(walk, scored, f"{WINDOWS_PROTOCOL}(max_length={max_length})")


def token_weighted_loss(
    model: Any, batches: Iterable[Batch], on_progress: Callable[[int], None] | None = None
) -> tuple[float, int]:
    """Mean negative log likelihood per scored token, in nats, and the number of scored tokens.

    Logits are converted to float32 and their losses are summed in float64. The model is in evaluation mode meanwhile
    and returns to its previous mode. Without scored tokens the result is (NaN, 0).

    Args:
        model: a causal language model that takes `input_ids` and `attention_mask` and returns `.logits`
            as [batch, length, vocab_size] of any floating type.
        batches: the batches to score.
        on_progress: called after each batch with the tokens scored so far; an exception from it ends the evaluation.
    """
    was_training = bool(model.training)
    device = next(model.parameters()).device
    model.eval()
    total, tokens = 0.0, 0
    try:
        for batch in batches:
            nll, scored = _batch_nll(model, batch, device)
            total += nll
            tokens += scored
            if on_progress is not None:
                on_progress(tokens)
    finally:
        model.train(was_training)
    return (total / tokens if tokens else float("nan")), tokens


@torch.no_grad()
def _batch_nll(model: Any, batch: Batch, device: torch.device) -> tuple[float, int]:
    """Sum of the negative log likelihoods of the scored tokens, in nats, and the number of tokens."""
    # The logits after a token predict the next one: [batch, length - 1, vocab_size] and int64 [batch, length - 1].
    logits = model(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    ).logits[:, :-1]
    targets = batch.labels[:, 1:].to(device)
    scored = targets != IGNORED
    # float32 [scored, vocab_size] and int64 [scored] → float32 [scored]
    nll = cross_entropy(logits[scored].float(), targets[scored], reduction="none")
    return float(nll.double().sum()), int(scored.sum())
