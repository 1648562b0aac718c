"""The rows of a batch of pairs through the model without padding, with what TRL's loss reads put into its places.

TRL pads both answers of all pairs to the longest one. Here the rows go through the model in one sequence whose rows do
not see each other, or one by one, as in fine-tuning; the loss is the same.

On a CPU, TRL's fused head projects every position and computes the logits again for the gradient. Where logits are few
enough to be kept, the model's own head runs once, and only where a token is scored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from engines.forward.arrangement import Arrangement, causal_model
from engines.forward.label_loss import IGNORED, MOST_LOGITS
from engines.forward.rows_attention import rows_in_sequence

OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
"""What TRL's fused head gives for each token that is scored: [batch, length - 1]."""

Model = Callable[..., Any]


class ScoredTokens:
    """What a model gives for each token that is scored, by its own head where TRL's is slower.

    Args:
        model: has TRL's fused head, and its weights are loaded.
        outputs: those that are read; the others are None.
    """

    def __init__(self, model: Any, outputs: tuple[str, ...]) -> None:
        core = causal_model(model)
        head = core.get_output_embeddings()
        selects = "logits_to_keep" in inspect.signature(core.forward).parameters
        self._own = head is not None and head.weight.device.type == "cpu" and selects
        self._most = MOST_LOGITS // int(head.weight.shape[0]) if head is not None else 0
        self._outputs = outputs

    def of(self, model: Model, ids: torch.Tensor, labels: torch.Tensor, **more: Any) -> Any:
        """The values of one sequence, [1, length - 1], zero where no token is scored.

        Args:
            model: the model, or the reference.
            ids: int64 [length].
            labels: ids that are scored, `IGNORED` elsewhere; the first is ignored.
            more: further arguments of the model and of TRL's head.
        """
        at = (labels[1:] != IGNORED).nonzero()[:, 0]
        if not self._own or at.numel() > self._most or more.get("output_router_logits"):
            return model(input_ids=ids[None], labels=labels[None], **more)
        given = {name: value for name, value in more.items() if name != "fused_lm_head"}
        logits = model(input_ids=ids[None], logits_to_keep=at, **given).logits[0].float()
        chosen = labels[1:][at]
        log_probs = logits.log_softmax(dim=-1)
        found = {"log_probs": log_probs.gather(1, chosen[:, None])[:, 0]}
        with torch.no_grad():
            if "entropy" in self._outputs:
                found["entropy"] = -(log_probs.exp() * log_probs).sum(dim=-1)
            if "mean_logits" in self._outputs:
                found["mean_logits"] = logits.mean(dim=-1)
            if "is_top1" in self._outputs:
                found["is_top1"] = logits.argmax(dim=-1) == chosen
            if "log_sum_sq_probs" in self._outputs:
                found["log_sum_sq_probs"] = (2 * log_probs).logsumexp(dim=-1)
        places = {name: value.new_zeros(len(ids) - 1).scatter(0, at, value)[None] for name, value in found.items()}
        return SimpleNamespace(**{name: places.get(name) for name in OUTPUTS})


class FlatModel:
    """A model that takes a padded batch and computes no padding.

    Args:
        model: takes rows in one sequence, or single rows, with the fused head of TRL.
        arrangement: which of both.
        scored: gives the values of the scored tokens.
    """

    def __init__(self, model: Model, arrangement: Arrangement, scored: ScoredTokens) -> None:
        self._model = model
        self._way = arrangement.way
        self._scored = scored

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **more: Any
    ) -> Any:
        """What the model gives for a padded batch, int64 [batch, length] each; zero where a row is padding.

        In one sequence, the caller's forward and backward pass are within `rows_of_batch`.
        """
        lengths = attention_mask.sum(dim=1).tolist()
        rows = [(input_ids[n, :length], labels[n, :length]) for n, length in enumerate(lengths)]
        if self._way == "row by row":
            parts = [self._scored.of(self._model, ids, wanted, **more) for ids, wanted in rows]
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
        whole = self._scored.of(self._model, ids, wanted, position_ids=positions[None], **more)
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
