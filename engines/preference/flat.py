"""The rows of a batch of pairs through the model without padding, with what TRL's loss reads put into its places.

TRL pads both answers of all pairs to the longest one. Here the rows go through the model in one sequence whose rows do
not see each other, or one by one, as in fine-tuning; the loss is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from engines.forward.arrangement import Arrangement
from engines.forward.label_loss import IGNORED
from engines.forward.rows_attention import rows_in_sequence

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
"""What TRL's fused head gives for each token that is scored: [batch, length - 1]."""

Model = Callable[..., Any]


class FlatModel:
    """A model that takes a padded batch and computes no padding.

    Args:
        model: takes rows in one sequence, or single rows, with the fused head of TRL.
        arrangement: which of both.
    """

    def __init__(self, model: Model, arrangement: Arrangement) -> None:
        self._model = model
        self._way = arrangement.way

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **more: Any
    ) -> Any:
        """What the model gives for a padded batch, int64 [batch, length] each; zero where a row is padding.

        In one sequence, the caller's forward and backward pass are within `rows_of_batch`.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        rows = [(input_ids[n, :length], labels[n, :length]) for n, length in enumerate(lengths)]
        if self._way == "row by row":
            parts = [self._model(input_ids=ids[None], labels=wanted[None], **more) for ids, wanted in rows]
            found = [{name: getattr(part, name) for name in OUTPUTS} for part in parts]
        else:
            found = self._in_sequence(rows, more)
        values = {name: _padded([row[name] for row in found], input_ids.shape[1] - 1) for name in OUTPUTS}
        return SimpleNamespace(**values)

    def _in_sequence(
        self, rows: list[tuple[torch.Tensor, torch.Tensor]], more: dict[str, Any]
    ) -> list[dict[str, torch.Tensor | None]]:
        ids, wanted = (torch.cat(parts) for parts in zip(*rows, strict=True))
        positions = torch.cat([torch.arange(len(row), device=ids.device) for row, _ in rows])
        starts = [0]
        for row, _ in rows:
            starts.append(starts[-1] + len(row))
        wanted = wanted.clone()
        wanted[torch.tensor(starts[:-1], device=ids.device)] = IGNORED  # it follows another row: no context
        whole = self._model(input_ids=ids[None], position_ids=positions[None], labels=wanted[None], **more)
        return [
            {name: _part(getattr(whole, name), start, start + len(row) - 1) for name in OUTPUTS}
            for start, (row, _) in zip(starts, rows, strict=False)
        ]


@contextmanager
def rows_of_batch(arrangement: Arrangement, attention_mask: torch.Tensor) -> Iterator[None]:
    """Within it, a forward and a backward pass of a batch keep its rows apart; only for rows in one sequence."""
    if arrangement.way != "one sequence":
        yield
        return
    with rows_in_sequence(attention_mask.sum(dim=1).tolist()):
        yield


def _part(values: torch.Tensor | None, start: int, end: int) -> torch.Tensor | None:
    return None if values is None else values[:, start:end]


def _padded(rows: list[torch.Tensor | None], width: int) -> torch.Tensor | None:
    """Rows of [1, own length] as [rows, width], with zeros behind."""
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return None
    return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in known])
