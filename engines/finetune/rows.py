"""Conversations as training examples: labels on answers only, and a warning for every row that is cut or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from engines.context import StageContext
from engines.data.door import DataSource, ReadCounts, conversation, read_conversations, read_rows, splits_in
from engines.training.loss import AnswerStats, Batches, Example, answer_batches, encode_answers, pad_batch
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage


class ExampleDataset(Dataset[Example]):
    """Tokenized conversations, in file order."""

    def __init__(self, examples: list[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        """Ids and labels of each example."""
        return ((example.input_ids, example.labels) for example in self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def load_train(ctx: StageContext[FinetuneStage], data: DataSource, tokenizer: Any) -> ExampleDataset:
    """Tokenize the train split and warn about rows that were cut or left out.

    Raises:
        OperatorError: no row is left to train on.
        StopRequested: the operator requested a stop.
    """
    examples, stats = encode_answers(_reported(ctx, data), tokenizer, ctx.stage.max_length, waiting=ctx.check_stop)
    _warn(ctx, stats)
    if not examples:
        raise OperatorError(
            f"{data.place}: none of the {stats.rows} rows of its train split has an answer within"
            f" {ctx.stage.max_length} tokens",
            "raise max_length, or prepare other messages",
        )
    return ExampleDataset(examples)


def load_val(ctx: StageContext[FinetuneStage], data: DataSource, tokenizer: Any) -> Batches | None:
    """Batches of the val split for evaluations during training; None without rows."""
    stage = ctx.stage
    if "val" in splits_in(data):
        rows = (row.as_dicts() for row in read_conversations(data, "val"))
        batches = answer_batches(
            rows,
            tokenizer,
            stage.max_length,
            stage.per_device_eval_batch_size,
            max_tokens=stage.eval_max_tokens,
            waiting=ctx.check_stop,
        )
        if batches.scored_tokens:
            return batches
    if stage.eval_steps is not None:
        ctx.warn("the data has no val split; evaluation during training is skipped")
    return None


def collate_examples(examples: list[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch padded on the right to its longest example, each tensor int64 [batch, longest]. Draws no random
    numbers."""
    batch = pad_batch(examples, pad_id)
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def collator(pad_id: int) -> Callable[[list[Example]], dict[str, torch.Tensor]]:
    """A collate function that data-loading processes can pickle."""
    return partial(collate_examples, pad_id=pad_id)


def _reported(ctx: StageContext[FinetuneStage], data: DataSource) -> Iterator[list[dict[str, Any]]]:
    counts = ReadCounts()
    for located in read_rows(data, "train", counts):
        yield conversation(located).as_dicts()
        ctx.progress(counts.rows, None, "rows")
    for note in counts.notes():
        ctx.warn(note)


def _warn(ctx: StageContext[FinetuneStage], stats: AnswerStats) -> None:
    length = ctx.stage.max_length
    if stats.truncated:
        ctx.warn(f"{stats.truncated} of {stats.rows} rows and their answers were cut at {length} tokens")
    if stats.dropped:
        ctx.warn(f"{stats.dropped} of {stats.rows} rows were left out: no answer within {length} tokens")
    if stats.control_strings:
        ctx.warn(f"{stats.control_strings} of {stats.rows} rows were left out: they contain a literal control string")
