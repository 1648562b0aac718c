"""Preferences as pairs of examples, and batches of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from engines.context import StageContext
from engines.data.door import DataSource, Located, ReadCounts, read_rows, splits_in
from engines.labels.pairs import LabelledPair, label_pairs
from engines.labels.row import IGNORED, DroppedRow, LabelCounts, LabelRules, RefusedRow
from engines.labels.stage_rows import Warnings, protocol_of, skips_refused, why_no_evaluation
from engines.labels.vocabulary import TokenizerView
from engines.training.loss import Example, pad_batch
from recipes.problems import OperatorError
from recipes.stages.dpo import PreferenceFields


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; with `reference`, the log probabilities of both in the reference."""

    chosen: Example
    rejected: Example
    reference: tuple[float, float] | None = None

    @property
    def length(self) -> int:
        """Tokens of the longer one."""
        return max(len(self.chosen.input_ids), len(self.rejected.input_ids))


class PairDataset(Dataset[Pair]):
    """Labelled pairs, in file order."""

    def __init__(self, pairs: Iterable[LabelledPair], counts: LabelCounts, read: ReadCounts) -> None:
        """Take the pairs; their texts are not kept.

        Args:
            pairs: as they are labelled.
            counts: counts of the rows, complete when the last one is there.
            read: what was read, and what was not.
        """
        self.counts = counts
        self.read = read
        self.items = [_example_pair(pair) for pair in pairs]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Pair:
        return self.items[index]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max((pair.length for pair in self.items), default=0)

    def answers(self) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        """Ids and labels of each preferred answer."""
        return ((pair.chosen.input_ids, pair.chosen.labels) for pair in self.items)


@dataclass(frozen=True)
class HeldOut:
    """The pairs of the val split in batches, and how they were labelled."""

    batches: list[list[Pair]]
    protocol: str

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max((pair.length for batch in self.batches for pair in batch), default=0)


def load_train(
    ctx: StageContext[PreferenceFields], data: DataSource, view: TokenizerView, rules: LabelRules
) -> PairDataset:
    """Label the train split and warn about rows that were cut or left out.

    Raises:
        OperatorError: a row is refused, or no pair is left to train on.
        StopRequested: the operator requested a stop.
    """
    counts, warnings, read = LabelCounts(), Warnings(rules), ReadCounts()
    dataset = PairDataset(_pairs(ctx, _reported(ctx, data, read), view, rules, counts, warnings), counts, read)
    for text in [*read.notes(), *warnings.texts(counts)]:
        ctx.warn(text)
    if not read.rows:
        raise OperatorError(f"{data.place}: its train split has no rows", "give a file with rows")
    if not dataset.items:
        raise OperatorError(
            f"{data.place}: none of the {counts.rows} rows of its train split is a pair with both answers within"
            f" {rules.max_length} tokens; the longest has {counts.longest}",
            "raise max_length, or give rows with prompt, chosen and rejected",
        )
    return dataset


def load_val(
    ctx: StageContext[PreferenceFields], data: DataSource, view: TokenizerView, rules: LabelRules
) -> HeldOut | None:
    """The val split for evaluations during training; None without pairs."""
    stage = ctx.stage
    found, longest = None, 0
    if "val" in splits_in(data):
        counts, read, pairs = LabelCounts(), ReadCounts(), []
        for pair in _pairs(ctx, read_rows(data, "val", read), view, rules, counts, Warnings(rules)):
            pairs.append(_example_pair(pair))
            if counts.scored_tokens >= stage.eval_max_tokens:
                break
        if read.refused:
            ctx.warn(f"of the val split, {read.notes()[0]}")
        if pairs:
            pairs.sort(key=lambda pair: pair.length)  # similar lengths together: little padding
            size = stage.per_device_eval_batch_size
            return HeldOut([pairs[at : at + size] for at in range(0, len(pairs), size)], protocol_of(rules))
        found, longest = read.rows, counts.longest
    if stage.evaluates:
        why = why_no_evaluation(found, longest, rules.max_length)
        ctx.warn(f"{why}; evaluation during training is skipped")
    return None


def collate_pairs(pairs: list[Pair], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch as TRL's DPOTrainer takes it: all chosen answers, then all rejected ones, padded on the right.

    Returns:
        `input_ids`, `attention_mask` and `completion_mask` (1 where the loss counts), int64 [2 pairs, longest]; and
        with references `ref_chosen_logps` and `ref_rejected_logps`, float32 [pairs]. Draws no random numbers.
    """
    both = pad_batch([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)], pad_id)
    batch = {
        "input_ids": both.input_ids,
        "attention_mask": both.attention_mask,
        "completion_mask": (both.labels != IGNORED).long(),
    }
    batch["completion_mask"][:, 0] = 0  # the first token has no context
    known = [pair.reference for pair in pairs if pair.reference is not None]
    if len(known) == len(pairs):
        chosen, rejected = zip(*known, strict=True)
        batch |= {"ref_chosen_logps": torch.tensor(chosen), "ref_rejected_logps": torch.tensor(rejected)}
    return batch


def collator(pad_id: int) -> Any:
    """A collate function that data-loading processes can pickle."""
    return partial(collate_pairs, pad_id=pad_id)


def _example_pair(pair: LabelledPair) -> Pair:
    chosen, rejected = (Example(half.ids, half.labels) for half in pair.both)
    return Pair(chosen, rejected)


def _pairs(
    ctx: StageContext[PreferenceFields],
    rows: Iterable[Located],
    view: TokenizerView,
    rules: LabelRules,
    counts: LabelCounts,
    warnings: Warnings,
) -> Iterator[LabelledPair]:
    for one in label_pairs(rows, view, rules, counts, places=False, waiting=ctx.check_stop):
        if isinstance(one, RefusedRow):
            if not skips_refused(ctx.stage):
                raise OperatorError(f"{one.where}: {one.reason}", one.way_out)
            warnings.add(one)
        elif not isinstance(one, DroppedRow):
            yield one


def _reported(ctx: StageContext[PreferenceFields], data: DataSource, read: ReadCounts) -> Iterator[Located]:
    for row in read_rows(data, "train", read):
        yield row
        ctx.progress(read.rows, None, "rows")
