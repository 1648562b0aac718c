"""How the Trainer takes its rows: without padding, with logits where a label is, in an order by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainingArguments

from engines.forward.arrangement import PADDED, Arrangement
from engines.forward.joining import has_rows, join
from engines.forward.label_loss import OWN_KEYS, LabelLoss, rows_of
from engines.forward.rows_attention import rows_in_sequence
from engines.ranks.placement import Placement
from engines.training.precision import autocast


class RowsMixin:
    """The loss of rows without padding, with logits where a label is; set `arrangement` and `label_loss` before
    `train`.

    A batch that is one sequence of several rows has their `lengths`. The loss of each micro-batch is divided by the
    labels of the accumulation window, so it does not depend on the arrangement.
    """

    args: TrainingArguments
    placement: Placement
    of_all_processes: Callable[[torch.Tensor | int | None], torch.Tensor | int | None]
    arrangement: Arrangement = PADDED
    label_loss: LabelLoss | None = None
    most_tokens: int | None = None
    """Tokens of the longest sequence of joined micro-batches; None joins none."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Fetch a window; micro-batches with short rows share a pass through the model."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if self.most_tokens is None or self.label_loss is None or items is None:
            return batches, items
        return join(batches, self.most_tokens), items

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, or of each of its rows where the model cannot take them at once."""
        step = super().training_step  # type: ignore[misc]
        if "lengths" not in inputs:
            whole: torch.Tensor = step(model, inputs, num_items_in_batch)
            return whole
        if not has_rows(inputs):  # its rows are in another micro-batch
            return torch.zeros((), device=self.args.device)
        if self.arrangement.way == "row by row":
            return self._row_by_row(step, model, rows_of(inputs), num_items_in_batch)
        with rows_in_sequence(inputs["lengths"]):  # until the backward pass has ended: it may compute forward again
            packed: torch.Tensor = step(model, inputs, num_items_in_batch)
        return packed

    def _row_by_row(self, step: Any, model: Any, rows: list[dict[str, torch.Tensor]], items: Any) -> torch.Tensor:
        """The passes of single rows; gradients of all processes come together in the last one only."""
        losses = []
        for number, row in enumerate(rows, 1):
            with self.placement.synced(last=number == len(rows)):
                losses.append(step(model, row, items))
        return torch.stack(losses).sum()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Sum over the labels, divided by those of the window; the model's own loss where it has another one."""
        items = kwargs.get("num_items_in_batch")
        if self.label_loss is None or items is None or kwargs.get("return_outputs"):
            given = {name: value for name, value in inputs.items() if name not in OWN_KEYS}
            if items is not None:
                kwargs["num_items_in_batch"] = self.of_all_processes(items)
            return super().compute_loss(model, given, *args, **kwargs)  # type: ignore[misc]
        smoothing = float(self.args.label_smoothing_factor)
        with autocast(self.args.device, bf16=bool(self.args.bf16), fp16=bool(self.args.fp16)):
            total = self.label_loss.total(model, inputs, smoothing)
            counted: Any = self.of_all_processes(items)
            return total / counted


class EpochOrder(Sampler[int]):
    """Indices in an order that depends on the epoch only; a resume takes the same one. The data loader sets the
    epoch."""

    def __init__(self, order: Callable[[int], list[int]], examples: int) -> None:
        self._order, self._examples, self._epoch = order, examples, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch that is iterated next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._examples

    def __iter__(self) -> Iterator[int]:
        return iter(self._order(self._epoch))
