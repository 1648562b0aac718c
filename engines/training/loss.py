"""Token-weighted loss: batches of labelled tokens, and the mean over them.

Evaluation stages and evaluations during training use the same functions, so their numbers are comparable. A loss is the
sum of the negative log likelihoods (float64) of all scored tokens divided by their number, not a mean of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.distributed.tensor import DTensor

from engines.forward.arrangement import PADDED, Arrangement
from engines.forward.label_loss import IGNORED, REAL_TOKENS, LabelLoss, counted, rows_of
from engines.forward.rows_attention import rows_in_sequence
from engines.ranks.ran_out import RanOut
from engines.training.fitting import Fitting, Whole
from engines.world import ALONE, World

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

    def examples(self) -> list[Example]:
        """The rows without their padding."""
        lengths = self.attention_mask.sum(dim=1).tolist()
        rows = zip(self.input_ids, self.labels, lengths, strict=True)
        return [Example(ids[:length].tolist(), labels[:length].tolist()) for ids, labels, length in rows]


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated more than once; their totals, and the tokens of the longest row, are known in
    advance."""

    walk: Callable[[], Iterator[Batch]]
    scored_tokens: int
    protocol: str
    counts: Mapping[str, int] = field(default_factory=dict)
    longest: int = 0
    """tokens of the longest row"""

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
    longest = len(ordered[-1].input_ids) if ordered else 0
    return Batches(walk, scored, f"{ANSWERS_PROTOCOL}({protocol})", dict(counts or {}), longest)


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


def window_batches(
    shard: Shard, max_length: int, batch_size: int, *, max_tokens: int | None = None, spread: bool = False
) -> Batches:
    """Windows of a token shard; every token but the first of a window is scored.

    Args:
        shard: an open split; read window by window, never into memory at once.
        max_length: tokens per window; the last window may be shorter.
        batch_size: windows per batch; it does not change the loss.
        max_tokens: take so many windows as score this many tokens; None for all.
        spread: take them at equal distances from the whole split, and not from its start.
    """
    places = range(0, len(shard) - 1, max_length)
    wanted = len(places) if max_tokens is None else min(len(places), -(-max_tokens // (max_length - 1)))
    cut = spread and wanted < len(places)
    # The middles of equal parts: neither the first nor the last document of a split has a place of its own.
    chosen = [(2 * at + 1) * len(places) // (2 * wanted) if cut else at for at in range(wanted)]
    starts = [places[at] for at in chosen]
    scored = sum(min(max_length, len(shard) - start) - 1 for start in starts)
    protocol = f"{WINDOWS_PROTOCOL}(max_length={max_length}{', spread over the split' if cut else ''})"

    def walk() -> Iterator[Batch]:
        for at in range(0, len(starts), batch_size):
            windows = [shard.tokens[start : start + max_length].tolist() for start in starts[at : at + batch_size]]
            yield pad_batch([Example(window, window) for window in windows])

    return Batches(walk, scored, protocol, longest=min(max_length, len(shard)))


def one_sequence(examples: Sequence[Example]) -> dict[str, Any]:
    """Examples one after the other in one sequence, without padding.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 [1, tokens], and the `lengths` of the examples. Positions begin
        at 0 in each example; its first token has no context, so no label.
    """
    lengths = tuple(len(example.input_ids) for example in examples)
    ids = [torch.tensor(example.input_ids, dtype=torch.long) for example in examples]
    labels = [torch.tensor(example.labels, dtype=torch.long) for example in examples]
    for row in labels:
        row[0] = IGNORED
    positions = [torch.arange(length) for length in lengths]
    tensors = {"input_ids": ids, "labels": labels, "position_ids": positions}
    whole = {name: torch.cat(rows)[None] for name, rows in tensors.items()}
    return {**whole, "lengths": lengths, REAL_TOKENS: sum(lengths), **counted(whole["labels"])}


def token_weighted_loss(
    model: Any,
    batches: Iterable[Batch],
    on_progress: Callable[[int], None] | None = None,
    arrangement: Arrangement = PADDED,
    fitting: Fitting | None = None,
    world: World = ALONE,
) -> tuple[float, int]:
    """Mean negative log likelihood per scored token, in nats, and the number of scored tokens.

    Logits are converted to float32 and their losses are summed in float64. The model is in evaluation mode meanwhile
    and returns to its previous mode. Without scored tokens the result is (NaN, 0).

    Args:
        model: a causal language model that takes `input_ids` and `attention_mask` and returns `.logits`
            as [batch, length, vocab_size] of any floating type.
        batches: the batches to score.
        on_progress: called after each batch with the tokens scored so far; an exception from it ends the evaluation.
        arrangement: how the rows of a batch go through the model; it does not change the loss.
        fitting: divides batches that memory does not hold, and says so.
        world: the processes over which the batches are divided; each gets the result of all.

    Raises:
        EvaluationMemoryError: memory ran out in one of several processes; all raise it.
    """
    was_training = bool(model.training)
    device = next(model.parameters()).device
    loss = LabelLoss(model)
    model.eval()
    divided = isinstance(next(model.parameters()), DTensor)
    fitting = Whole() if divided else fitting or Fitting()
    total, tokens = 0.0, 0
    ran_out = RanOut(world, exchanges=divided)

    def sums(rows: Sequence[Example]) -> tuple[float, int]:
        found = [
            (float(nll.double().sum()), int(nll.numel())) for nll in _losses(model, loss, rows, arrangement, device)
        ]
        return sum(nll for nll, _ in found), sum(count for _, count in found)

    try:
        with ran_out:
            for batch, counts in _shared(batches, world):
                for nll, count in fitting.each(batch.examples(), sums):
                    total += nll if counts else 0.0
                    tokens += count if counts else 0
                if on_progress is not None:
                    on_progress(tokens)
    finally:
        model.train(was_training)
    ran_out.share()
    total, all_tokens = world.reduce_sum([total, tokens])
    tokens = int(all_tokens)
    return (total / tokens if tokens else float("nan")), tokens


def _shared(batches: Iterable[Batch], world: World) -> Iterator[tuple[Batch, bool]]:
    """This process's batches, equally many in each, and whether they count: one that has none computes its last again.

    The weights of a divided model come together in each pass, so every process must compute as many.
    """
    last: Batch | None = None
    number = -1
    for number, batch in enumerate(batches):
        if number % world.size == world.rank or last is None:
            last = batch
        if number % world.size == world.rank:
            yield batch, True
    if last is not None and world.rank > number % world.size:
        yield last, False


def _losses(
    model: Any, loss: LabelLoss, rows: Sequence[Example], arrangement: Arrangement, device: torch.device
) -> Iterator[torch.Tensor]:
    """The losses of the rows' scored tokens, in one piece or row by row, each float32 [scored]."""
    if arrangement.way == "padded":
        batch = pad_batch(rows)
        padded = {"input_ids": batch.input_ids, "labels": batch.labels, **counted(batch.labels)}
        yield loss.each(model, _moved(padded, device))
        return
    flat = one_sequence(rows)
    moved = _moved(flat, device)
    if arrangement.way == "row by row":
        for row in rows_of(moved):
            yield loss.each(model, row)
        return
    with rows_in_sequence(moved["lengths"]):
        yield loss.each(model, moved)


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
