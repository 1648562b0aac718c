"""Negative log likelihood of the labelled tokens of a batch, with logits at their positions only.

The logits are most of a batch's memory: 4 bytes for each token and each entry of the vocabulary, several times over.
The output head runs where a label is, and in chunks where even these are many. Logits are compared in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from engines.forward.arrangement import causal_model
from engines.forward.rows_attention import one_row

IGNORED = -100
"""Label of a position that the loss does not count (torch's own convention)."""
MOST_LOGITS = 1 << 26
"""Largest number of logits at once: 256 MiB as float32."""
_SHARE_OF_CARD = 512
"""Bytes of a GPU's memory for each logit at once: a large one computes a small chunk faster than a processor starts the
next, and a chunk takes at most 16 bytes a logit, a 32nd of the memory."""
SCORED_AT = "scored_at"
"""Key of a batch: the positions whose logits predict a label of any row, int64 [positions]. A collate function knows
them without waiting for the device."""
LABELLED_AT = "labelled_at"
"""Key of a padded batch: which of [batch * positions] have a label, int64 [labelled]."""
LOSS_TOKENS = "loss_tokens"
REAL_TOKENS = "real_tokens"
"""Keys of a batch: its labels and its tokens without padding, as Python's numbers."""
FILLER = "filler"
"""Key of a batch that only takes part in the exchanges of several processes: nothing of it counts."""
OWN_KEYS = frozenset({"lengths", SCORED_AT, LABELLED_AT, LOSS_TOKENS, REAL_TOKENS, FILLER})
"""Keys of a batch that no model takes."""
_SUM = 2
"""The number of the reduction `sum` in torch's operators."""
_STANDARD = "ForCausalLMLoss"
_PROBED = 6

aten: Any = torch.ops.aten

Logits = Callable[[torch.Tensor], torch.Tensor]
Nll = Callable[[torch.Tensor, torch.Tensor, float, str], torch.Tensor]


@dataclass(frozen=True)
class Head:
    """The part of a model after its last hidden state.

    Attributes:
        backbone: gives `last_hidden_state`, [batch, length, width].
        logits: of hidden states of any leading shape.
        trained: parameters of the head that have gradients.
    """

    backbone: Any
    logits: Logits
    trained: tuple[torch.nn.Parameter, ...]


def has_standard_loss(model: Any) -> bool:
    """Whether a model's loss is the mean negative log likelihood of the labels alone."""
    core = causal_model(model)
    if getattr(core.config.get_text_config(), "output_router_logits", False):
        return False  # its loss has a second term for the balance of experts
    return getattr(getattr(core, "loss_function", None), "__name__", "") == _STANDARD


def rows_of(batch: Mapping[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The rows of a batch that is one sequence, each as a batch of its own."""
    bounds = pairwise(accumulate(batch["lengths"], initial=0))
    return [
        {"input_ids": batch["input_ids"][:, start:end], "labels": batch["labels"][:, start:end]}
        for start, end in bounds
    ]


def most_on(device: torch.device) -> int:
    """The largest number of logits at once on a device."""
    if device.type != "cuda":
        return MOST_LOGITS
    return most_of(torch.cuda.get_device_properties(device).total_memory)


def most_of(card_bytes: int) -> int:
    """The same for a GPU of so much memory."""
    return max(MOST_LOGITS, card_bytes // _SHARE_OF_CARD)


class LabelLoss:
    """The loss of one model. It finds out once what the model offers, at the first batch that needs it."""

    def __init__(self, model: Any, most_logits: int | None = None) -> None:
        self._core = causal_model(model)
        self._most = most_logits or most_on(next(model.parameters()).device)
        self._selects = "logits_to_keep" in inspect.signature(self._core.forward).parameters
        self._head: Head | None = None
        self._probed = False
        self._nll: Nll = _nll

    @property
    def in_chunks(self) -> bool:
        """Whether a batch needed chunks of logits, and the model's head can be called alone for them."""
        return self._head is not None

    def compile(self) -> None:
        """Compute the loss of chunks of logits, and its gradient, in compiled code from now on."""
        self._nll = torch.compile(_nll)

    def total(self, model: Any, batch: Mapping[str, Any], label_smoothing: float = 0.0) -> torch.Tensor:
        """Sum over the labelled tokens, in nats; a float32 scalar with gradients.

        Args:
            model: the model, as the Trainer wraps it.
            batch: `input_ids` and `labels`, int64 [batch, length], padded on the right; `position_ids` where it is
                several rows in one sequence; and what `counted` says, if it is known.
            label_smoothing: as in torch's `cross_entropy`.
        """
        at, targets = _scored(batch)
        head = self._head_for(model, targets)
        if head is None:
            return _nll(self._logits(model, batch, at), targets, label_smoothing, "sum")
        hidden = self._hidden(head, batch)[:, at].flatten(0, 1)
        rows, wanted = _labelled(hidden, targets, batch)
        result: torch.Tensor = _ChunkedTotal.apply(
            rows, wanted, head, max(1, self._most // self._vocabulary()), label_smoothing, self._nll, *head.trained
        )
        return result

    @torch.no_grad()
    def each(self, model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """The labelled tokens' losses, float32 [labelled]."""
        at, targets = _scored(batch)
        head = self._head_for(model, targets)
        if head is None:
            logits = self._logits(model, batch, at).flatten(0, 1)
            return _nll(*_labelled(logits, targets, batch), 0.0, "none")
        hidden = self._hidden(head, batch)[:, at].flatten(0, 1)
        rows, wanted = _labelled(hidden, targets, batch)
        size = max(1, self._most // self._vocabulary())
        chunks = zip(rows.split(size), wanted.split(size), strict=True)
        return torch.cat([_nll(head.logits(some), labels, 0.0, "none") for some, labels in chunks])

    def _logits(self, model: Any, batch: Mapping[str, Any], at: torch.Tensor) -> torch.Tensor:
        """Logits at these positions of each row, [batch, positions, vocabulary]."""
        given = _model_inputs(batch)
        if self._selects:
            kept: torch.Tensor = model(**given, logits_to_keep=at).logits
            # A model may take the argument and ignore positions; the last token is never scored, so this shows.
            return kept if kept.shape[1] == at.numel() else kept[:, at]
        every: torch.Tensor = model(**given).logits
        return every[:, at]

    def _hidden(self, head: Head, batch: Mapping[str, Any]) -> torch.Tensor:
        found: torch.Tensor = head.backbone(**_model_inputs(batch)).last_hidden_state
        return found

    def _head_for(self, model: Any, targets: torch.Tensor) -> Head | None:
        """The head, if the logits are too many for one piece and the head can be called alone."""
        if targets.numel() * self._vocabulary() <= self._most:
            return None
        if isinstance(next(self._core.parameters()), DTensor):
            return None  # a part of a divided model cannot be called alone: its weights come together in a whole pass
        if not self._probed:
            self._head, self._probed = _head_of(self._core, model), True
        return self._head

    def _vocabulary(self) -> int:
        head = self._core.get_output_embeddings()
        return 1 if head is None else int(head.weight.shape[0])


class _ChunkedTotal(torch.autograd.Function):
    """Sum of the losses, chunk by chunk. Gradients are computed with the chunk's logits, so none are kept: the loss is
    a scalar, and what comes from above is a factor."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        head: Head,
        size: int,
        label_smoothing: float,
        nll: Nll,
        *trained: torch.nn.Parameter,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = [torch.zeros_like(parameter) for parameter in trained]
        parts = []
        for some, labels in zip(hidden.detach().split(size), targets.split(size), strict=True):
            with torch.enable_grad():
                leaf = some.requires_grad_()
                loss = nll(head.logits(leaf), labels, label_smoothing, "sum")
            first, *others = torch.autograd.grad(loss, [leaf, *trained], allow_unused=True)
            parts.append(first)
            for so_far, one in zip(gradients, others, strict=True):
                if one is not None:
                    so_far.add_(one)
            total += loss.detach()
        ctx.save_for_backward(torch.cat(parts) if parts else hidden, *gradients)
        return total

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        hidden, *trained = ctx.saved_tensors
        return (above.to(hidden.dtype) * hidden, None, None, None, None, None, *(above * one for one in trained))


def counted(labels: torch.Tensor) -> dict[str, Any]:
    """What a batch says of its labels (int64 [batch, length]) on the processor, before it is moved to a GPU: to find it
    out there, the processor would wait for the GPU several times in each pass."""
    is_label = labels[:, 1:] != IGNORED
    at = is_label.any(dim=0).nonzero()[:, 0]
    known: dict[str, Any] = {SCORED_AT: at, LOSS_TOKENS: int(is_label.sum())}
    if len(labels) > 1 and known[LOSS_TOKENS] < len(labels) * len(at):
        known[LABELLED_AT] = is_label[:, at].flatten().nonzero()[:, 0]
    return known


def _scored(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions whose logits predict a label of any row, int64 [positions], and the labels, int64 [batch, positions].

    The logits at a token predict the next one.
    """
    following = batch["labels"][:, 1:]
    if batch.get(SCORED_AT) is not None:
        return batch[SCORED_AT], following[:, batch[SCORED_AT]]
    at = (following != IGNORED).any(dim=0).nonzero()[:, 0]
    return at, following[:, at]


def _labelled(
    values: torch.Tensor, targets: torch.Tensor, batch: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of [batch * positions, …] that have a label, and their labels."""
    flat = targets.flatten()
    if targets.shape[0] == 1 or batch.get(LOSS_TOKENS) == flat.numel():
        return values, flat
    kept = batch[LABELLED_AT] if batch.get(LABELLED_AT) is not None else (flat != IGNORED).nonzero()[:, 0]
    return values[kept], flat[kept]


def _nll(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float, reduction: str) -> torch.Tensor:
    values, labels = logits.flatten(0, -2), targets.flatten()
    if _fits_in_place(values, label_smoothing, reduction):
        result: torch.Tensor = _TotalInPlace.apply(values, labels)
        return result
    return cross_entropy(
        values.float(), labels, ignore_index=IGNORED, reduction=reduction, label_smoothing=label_smoothing
    )


def _fits_in_place(values: torch.Tensor, label_smoothing: float, reduction: str) -> bool:
    on_cpu = values.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and reduction == "sum" and label_smoothing == 0 and values.requires_grad


class _TotalInPlace(torch.autograd.Function):
    """torch's `cross_entropy` with the sum as its reduction, by the same kernels and so with the same bits, on a CPU.

    Two of the kernels write where they read. Each of torch's own buffers is 4 bytes a logit that the system must give
    and clear page by page in every step, which takes longer than computing its values.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        values = logits.float()
        if values is logits:  # they belong to the model
            values = torch.log_softmax(values, 1)
        else:
            aten._log_softmax.out(values, 1, False, out=values)
        total: torch.Tensor
        total, weight = aten.nll_loss_forward(values, targets, None, _SUM, IGNORED)
        ctx.save_for_backward(values, targets, weight)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> Any:
        values, targets, weight = ctx.saved_tensors
        gradient = aten.nll_loss_backward(above, values, targets, None, _SUM, IGNORED, weight)
        aten._log_softmax_backward_data.out(gradient, values, 1, torch.float32, out=gradient)
        return gradient.to(ctx.dtype), None


def _model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch for the model, without its mask: padding is on the right, so no token attends to it, and a mask would
    keep attention from its fastest kernels."""
    names: Sequence[str] = ("input_ids", "position_ids")
    return {"use_cache": False} | {name: batch[name] for name in names if batch.get(name) is not None}


def _head_of(core: Any, model: Any) -> Head | None:
    """The head of a model, if calling it alone gives the model's own logits; tried with a few tokens."""
    backbone, projection = getattr(core, "base_model", core), core.get_output_embeddings()
    if backbone is core or projection is None:
        return None
    settings = core.config.get_text_config()
    divisor, factor = (
        getattr(settings, "logits_scaling", None),
        getattr(settings, "logit_scale", None),
    )  # Granite, Cohere
    cap = getattr(settings, "final_logit_softcapping", None)  # Gemma 2 and 3

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = projection(hidden)
        if divisor:
            found = found / divisor
        if factor:
            found = found * factor
        return torch.tanh(found / cap) * cap if cap else found

    trained = tuple(parameter for parameter in projection.parameters() if parameter.requires_grad)
    head = Head(backbone, logits, trained)
    return head if _gives_the_same(head, model, int(projection.weight.shape[0])) else None


@torch.no_grad()
def _gives_the_same(head: Head, model: Any, vocabulary: int) -> bool:
    ids = (torch.arange(1, _PROBED + 1, device=next(model.parameters()).device) % vocabulary)[None]
    was_training = bool(model.training)
    model.eval()
    try:
        with one_row():  # the batch that needs the head may be several
            own = model(input_ids=ids, use_cache=False).logits.float()
            here = head.logits(head.backbone(input_ids=ids, use_cache=False).last_hidden_state).float()
    except (RuntimeError, ValueError, TypeError, AttributeError):
        return False
    finally:
        model.train(was_training)
    return torch.allclose(own, here, rtol=1e-5, atol=1e-6 * float(own.std()))
