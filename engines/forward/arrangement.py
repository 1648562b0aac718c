"""How the rows of a batch go through a model: in one sequence, one after the other, or padded.

All three give the same loss and the same gradients. A model takes rows in one sequence if its attention can keep them
apart, which is tried with the model itself: other tokens in one row must change no logit of another row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from engines.forward.rows_attention import NAME, OWN, rows_in_sequence

Way = Literal["one sequence", "row by row", "padded"]

MIXES = "the model mixes the rows of a sequence"
_LIMITS = ("sliding_window", "attention_chunk_size")
"""Settings that bound how far a token attends; a row within the bound is attended whole."""
_BY_LENGTH = ("longrope", "dynamic")
"""Rotary positions whose frequencies depend on the longest row of a forward pass, beyond the original context."""
_ROWS = (5, 7)
"""Lengths of the two rows with which a model is tried."""
_SINGLE, _HALF = 1e-3, 0.1
"""Difference of logits, relative to their spread, that rounding in 32 and in 16 bits explains."""


@dataclass(frozen=True)
class Arrangement:
    """The way of rows through a model, and why it is not the fastest one."""

    way: Way
    reason: str = ""

    def words(self) -> str:
        """The way and the reason, for the operator."""
        shown = {"one sequence": "rows in one sequence", "row by row": "rows one by one", "padded": "padded rows"}
        return shown[self.way] + (f" ({self.reason})" if self.reason else "")


PADDED = Arrangement("padded")


@contextmanager
def _float32_products() -> Iterator[None]:
    """TF32 would differ by more than what float32 explains."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def causal_model(model: Any) -> Any:
    """The language model itself, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def arrange(model: Any, *, longest: int, as_it_is: bool = False) -> Arrangement:
    """Prepare a model for rows without padding; changes its attention, no weight and no random state.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        longest: tokens of the longest row, of training and of evaluation.
        as_it_is: keep the model's own attention, which may keep rows apart by their positions alone.
    """
    core = causal_model(model)
    if as_it_is:
        return Arrangement("one sequence") if _apart(model) else Arrangement("row by row", MIXES)
    own = getattr(core.config, "_attn_implementation", None)
    if own not in (OWN, NAME):
        return Arrangement("row by row", f"the model's attention is {own}")
    bounds = [bound for bound in _bounds(core.config) if bound < longest]
    if bounds:
        return Arrangement("row by row", f"the model attends to {min(bounds)} tokens, rows have up to {longest}")
    contexts = [context for context in _original_contexts(core.config) if context < longest]
    if contexts:
        reason = f"the model's positions change beyond {min(contexts)} tokens, rows have up to {longest}"
        return Arrangement("row by row", reason)
    if not _apart(model, NAME):
        core.set_attn_implementation(OWN)
        return Arrangement("row by row", MIXES)
    return Arrangement("one sequence")


def arrange_as(model: Any, arrangement: Arrangement) -> None:
    """Prepare a second model of the same kind for an arrangement that the first one was tried with."""
    if arrangement.way == "one sequence":
        causal_model(model).set_attn_implementation(NAME)


def _apart(model: Any, attention: str = "") -> bool:
    """Whether the model, with this attention if one is named, keeps rows apart; False where it cannot be tried."""
    try:
        if attention:
            causal_model(model).set_attn_implementation(attention)
        return keeps_rows_apart(model)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return False


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Whether a later token leaves the logits of the earlier ones as they are; an encoder attends to both sides."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, _ROWS[1] + 1, device=next(model.parameters()).device) % rows
    other = torch.cat([ids[:-1], (ids[-1:] + 11) % rows])
    was_training = bool(model.training)
    model.eval()
    try:
        one, two = (model(input_ids=given[None], use_cache=False).logits[0, :-1].float() for given in (ids, other))
    except RuntimeError:  # such as a type that this device does not compute in; the training moves the model first
        return True
    finally:
        model.train(was_training)
    allowed = _SINGLE if next(model.parameters()).dtype is torch.float32 else _HALF
    return not float((one - two).abs().max()) > allowed * float(one.std())


@torch.no_grad()
@_float32_products()
def keeps_rows_apart(model: Any) -> bool:
    """Whether a row's logits in one sequence with another are those of the row alone, whatever the other one is."""
    rows = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    first = torch.arange(1, _ROWS[0] + 1, device=device) % rows
    second = torch.arange(3, 3 + 2 * _ROWS[1], 2, device=device) % rows
    was_training = bool(model.training)
    model.eval()
    try:
        here, there = (_second_of(model, other, second) for other in (first, (first + 11) % rows))
        alone = model(input_ids=second[None], use_cache=False).logits[0].float()
    finally:
        model.train(was_training)
    allowed = _SINGLE if next(model.parameters()).dtype is torch.float32 else _HALF
    distance = float((here - alone).square().mean().sqrt())  # the largest one would grow with the vocabulary
    return torch.equal(here, there) and distance <= allowed * float(alone.std())


def _second_of(model: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Logits of a row that follows another one: float32 [length, vocabulary]."""
    positions = torch.cat([torch.arange(len(row), device=row.device) for row in (first, second)])
    with rows_in_sequence([len(first), len(second)]):
        logits = model(input_ids=torch.cat([first, second])[None], position_ids=positions[None], use_cache=False).logits
    found: torch.Tensor = logits[0, len(first) :].float()
    return found


def _bounds(config: Any) -> list[int]:
    text = config.get_text_config()
    return [value for name in _LIMITS if isinstance(value := getattr(text, name, None), int) and value > 0]


def _original_contexts(config: Any) -> list[int]:
    """Lengths from which on a row in a forward pass changes what other rows of it compute."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    tables = [table for table in (rope, *rope.values()) if isinstance(table, dict)]
    names = ("original_max_position_embeddings", "max_position_embeddings")
    known = [
        [table.get(names[0]), *(getattr(text, name, None) for name in names)]
        for table in tables
        if table.get("rope_type") in _BY_LENGTH
    ]
    return [next(value for value in values if isinstance(value, int)) for values in known if any(values)]
