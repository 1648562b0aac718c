"""Rows of data as training examples, and a warning for every row that is cut or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from engines.context import StageContext
from engines.data.door import DataSource, Located, ReadCounts, read_rows, splits_in
from engines.forward.label_loss import REAL_TOKENS, counted
from engines.forward.packing import longer_than_a_sequence, packs_of
from engines.labels.row import LabelCounts, LabelledRow, LabelRules
from engines.labels.stage_rows import Warnings, examples_of, protocol_of, skips_refused, why_no_evaluation
from engines.labels.vocabulary import TokenizerView
from engines.training.loss import Batches, Example, answer_batches, one_sequence, pad_batch
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneFields


class ExampleDataset(Dataset[Example]):
    """Labelled rows, in file order."""

    def __init__(self, rows: Iterable[LabelledRow], counts: LabelCounts, read: ReadCounts) -> None:
        """Take the rows; their texts are not kept.

        Args:
            rows: as they are labelled.
            counts: counts of the rows, complete when the last one is there.
            read: what was read, and what was not.
        """
        self.counts = counts
        self.read = read
        self._examples = [Example(row.ids, row.labels) for row in rows]

    def __len__(self) -> int:
        return len(self._examples)

    def pairs(self) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """Ids and labels of each example."""
        return ((example.input_ids, example.labels) for example in self._examples)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max((len(example.input_ids) for example in self._examples), default=0)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.input_ids) for example in self._examples]

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class PackedDataset(Dataset[list[Example]]):
    """Sequences of several examples each, by a plan that depends on their lengths only."""

    def __init__(self, examples: ExampleDataset, max_length: int) -> None:
        self._examples = examples
        self.packs = packs_of(examples.lengths, max_length)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        rows = self._examples.lengths
        return [sum(rows[row] for row in pack) for pack in self.packs]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[Example]:
        return [self._examples[row] for row in self.packs[index]]


def refuse_left_out_rows(ctx: StageContext[FinetuneFields], dataset: ExampleDataset) -> None:
    """Refuse to pack where rows are longer than a sequence and `truncation` does not cut them.

    Raises:
        OperatorError: there are such rows.
    """
    counts, length = dataset.counts, ctx.stage.max_length
    if ctx.stage.truncation == "drop" and counts.longest > length:
        reason, way_out = longer_than_a_sequence(counts.longest, length)
        raise OperatorError(f"packing — {reason}", way_out)


def load_train(
    ctx: StageContext[FinetuneFields], data: DataSource, view: TokenizerView, rules: LabelRules
) -> ExampleDataset:
    """Label the train split and warn about rows that were cut or left out.

    Raises:
        OperatorError: a row is refused, or no row is left to train on.
        StopRequested: the operator requested a stop.
    """
    counts, warnings, read = LabelCounts(), Warnings(rules), ReadCounts()
    rows = examples_of(
        _reported(ctx, data, read),
        view,
        rules,
        counts,
        skip_refused=skips_refused(ctx.stage),
        refused=warnings.add,
        waiting=ctx.check_stop,
    )
    dataset = ExampleDataset(rows, counts, read)
    for note in read.notes():
        ctx.warn(note)
    for text in warnings.texts(counts):
        ctx.warn(text)
    if not read.rows:
        raise OperatorError(f"{data.place}: its train split has no rows", "give a file with rows")
    if not dataset:
        raise OperatorError(
            f"{data.place}: none of the {counts.rows} rows of its train split has an answer within {rules.max_length}"
            f" tokens; the longest has {counts.longest}",
            "raise max_length, or prepare other messages",
        )
    return dataset


def load_val(
    ctx: StageContext[FinetuneFields], data: DataSource, view: TokenizerView, rules: LabelRules
) -> Batches | None:
    """Batches of the val split for evaluations during training; None without rows."""
    stage = ctx.stage
    found, longest = None, 0
    if "val" in splits_in(data):
        counts, read = LabelCounts(), ReadCounts()
        rows = examples_of(
            read_rows(data, "val", read),
            view,
            rules,
            counts,
            skip_refused=skips_refused(stage),
            max_tokens=stage.eval_max_tokens,
            waiting=ctx.check_stop,
        )
        batches = answer_batches(rows, stage.per_device_eval_batch_size, protocol_of(rules))
        if read.refused:
            ctx.warn(f"of the val split, {read.notes()[0]}")
        if batches.scored_tokens:
            return batches
        found, longest = read.rows, counts.longest
    if stage.evaluates:
        why = why_no_evaluation(found, longest, rules.max_length)
        ctx.warn(f"{why}; evaluation during training is skipped")
    return None


def collate_examples(examples: list[Example], pad_id: int) -> dict[str, Any]:
    """A batch padded on the right to its longest example, each tensor int64 [batch, longest]. Draws no random
    numbers."""
    batch = pad_batch(examples, pad_id)
    tensors = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    return {**tensors, REAL_TOKENS: int(batch.attention_mask.sum()), **counted(batch.labels)}


def one_sequence_of_packs(packs: list[list[Example]]) -> dict[str, Any]:
    """The examples of all packs in one sequence, as `one_sequence` gives them."""
    return one_sequence([example for pack in packs for example in pack])


def collator(pad_id: int, *, padded: bool) -> Callable[[list[Example]], dict[str, Any]]:
    """A collate function that data-loading processes can pickle: a padded batch, or one sequence without padding."""
    return partial(collate_examples, pad_id=pad_id) if padded else one_sequence


def _reported(ctx: StageContext[FinetuneFields], data: DataSource, read: ReadCounts) -> Iterator[Located]:
    for row in read_rows(data, "train", read):
        yield row
        ctx.progress(read.rows, None, "rows")
