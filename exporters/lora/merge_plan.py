"""Where every tensor of the adapters goes in their base: ties kept or cut, vocabularies resized, places and shapes
checked.

No value is computed here; `exporters.lora.merged_weights` sums up by the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from exporters.hf_model.architectures import LLAMA, change_settings, known_architecture, language_settings
from exporters.hf_model.tensor_files import SafetensorsFolder, TensorInfo
from exporters.lora.adapter import Adapter, Change, read_matrix
from recipes.problems import OperatorError, printable

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Weighted:
    """An adapter and how much of it is added."""

    adapter: Adapter
    weight: float = 1.0


@dataclass(frozen=True)
class PlannedPart:
    """What one adapter does to one tensor: a change, a whole tensor in its place, or both."""

    weight: float
    change: Change | None
    whole: TensorInfo | None


@dataclass
class MergePlan:
    """A merged model, before a value of it is computed.

    Attributes:
        config: its config: the base's, with its head untied or its vocabulary resized as the adapters need.
        tensors: its tensors, with their types and shapes.
        sources: the base's tensor that each is made of.
        parts: what the adapters do to those that they change, in the adapters' order.
        warnings: what an operator should know about the result.
    """

    config: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    parts: dict[str, list[PlannedPart]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that differ from the base's."""
        return sorted(self.parts)


def plan_merge(
    base: SafetensorsFolder, config: dict[str, Any], adapters: Sequence[Weighted], *, dtype: str, untie: bool
) -> MergePlan:
    """Find a place for every tensor of the adapters.

    Args:
        base: a model's tensors, 16- or 32-bit.
        config: its config.json, with `tie_word_embeddings` explicit.
        adapters: what is merged, with weights. A tied model's are changed: what they say of the head is the
            embedding's.
        dtype: "base" keeps each tensor's type; or float32, bfloat16, float16.
        untie: give a tied model a head of its own where an adapter changes the embedding or the head alone.

    Raises:
        OperatorError: a tensor without a place, of another shape, or in the way of another one.
    """
    family = known_architecture(config) or LLAMA
    made = MergePlan(dict(config), sources={name: name for name in base.tensors})
    ends = _Ends(family.embedding, family.head)
    if language_settings(config)["tie_word_embeddings"]:
        _follow_tie(made, base, adapters, ends, untie=untie)
    for name, source in made.sources.items():
        info = base.tensors[source]
        shape = _shape(made, name, info, adapters, ends)
        made.tensors[name] = replace(info, name=name, shape=shape, dtype=DTYPES.get(dtype, info.dtype))
    _check_places(made, base, adapters, ends)
    for item in adapters:
        for name in (*item.adapter.changes, *item.adapter.replacements):
            made.parts.setdefault(name, [])
    for name, parts in made.parts.items():
        for item in adapters:
            change, whole = item.adapter.changes.get(name), item.adapter.replacements.get(name)
            if change is not None or whole is not None:
                parts.append(PlannedPart(item.weight, change, whole))
    return made


@dataclass(frozen=True)
class _Ends:
    """Names of the two matrices with a row for each token."""

    embedding: str
    head: str


def _follow_tie(
    made: MergePlan, base: SafetensorsFolder, adapters: Sequence[Weighted], ends: _Ends, *, untie: bool
) -> None:
    """A head that shares the embedding's matrix stays so, or gets one of its own.

    PEFT adds a LoRA of one of the two to the matrix that both share, although the other was used without it in
    training; `untie` keeps what was trained. Whole saved modules have left the tie already.
    """
    both = {ends.embedding, ends.head}
    held = [_holds_tie(item.adapter, base, ends) for item in adapters]  # each is asked: they may lose their heads
    if any(held):
        return
    replaced = {name for item in adapters for name in item.adapter.replacements}
    changed = {name for item in adapters for name in item.adapter.changes}
    split = (replaced & both) - changed
    if changed & both and not split and not untie:
        made.warnings.append(
            "the adapter changes the embedding or the head of a model in which they are one matrix: merged as "
            "PEFT does it,"
            " both get the change, and the model answers differently than it did in training; "
            "untie_word_embeddings = true"
            " keeps what was trained"
        )
        for item in adapters:
            _move_to_embedding(item.adapter, ends)
    elif split or (untie and changed & both):
        made.config = change_settings(made.config, tie_word_embeddings=False)
        made.sources[ends.head] = ends.embedding


def _holds_tie(adapter: Adapter, base: SafetensorsFolder, ends: _Ends) -> bool:
    """Whether an adapter saved the one matrix anew: under both names (one is dropped), or resized."""
    ours, theirs = adapter.replacements.get(ends.embedding), adapter.replacements.get(ends.head)
    if ours is None:
        return False
    if theirs is None:
        return ours.shape != base.tensors[ends.embedding].shape
    if ours.shape != theirs.shape or not np.array_equal(read_matrix(ours), read_matrix(theirs)):
        return False
    del adapter.replacements[ends.head]
    return True


def _move_to_embedding(adapter: Adapter, ends: _Ends) -> None:
    """A change of the head of a tied model is one of the embedding's matrix."""
    for found in (adapter.changes, adapter.replacements):
        if ends.head in found:
            if ends.embedding in found:
                raise OperatorError("the adapter changes the embedding and the head, which are one matrix in this base")
            found[ends.embedding] = found.pop(ends.head)  # type: ignore[assignment]


def _shape(made: MergePlan, name: str, info: TensorInfo, adapters: Sequence[Weighted], ends: _Ends) -> tuple[int, ...]:
    """The tensor's shape in the merged model: the base's, or a resized vocabulary's."""
    shapes = {item.adapter.replacements[name].shape for item in adapters if name in item.adapter.replacements}
    if not shapes or shapes == {info.shape}:
        return info.shape
    (shape, *others) = sorted(shapes)
    resized = name in (ends.embedding, ends.head) and len(shape) == 2 and shape[1:] == info.shape[1:]
    if not resized or others:
        raise OperatorError(f"{printable(name, 200)} is {info.shape} in the base and {shape} in the adapter")
    if len(adapters) > 1 or adapters[0].weight != 1.0:
        raise OperatorError(
            f"{printable(name, 200)} has {info.shape[0]} rows in the base and {shape[0]} in the adapter",
            "an adapter with a resized vocabulary is merged alone, with weight 1",
        )
    made.config = change_settings(made.config, vocab_size=shape[0])
    return shape


def _check_places(made: MergePlan, base: SafetensorsFolder, adapters: Sequence[Weighted], ends: _Ends) -> None:
    for item in adapters:
        for name in (*item.adapter.changes, *item.adapter.replacements):
            if name not in made.tensors:
                module = printable(name.removesuffix(".weight"), 200)
                raise OperatorError(f"the adapter changes {module}, which the base {base.folder} does not have")
        for name, change in item.adapter.changes.items():
            if made.tensors[name].shape != change.shape:
                raise OperatorError(
                    f"{printable(change.module, 200)} is {made.tensors[name].shape} in the base and {change.shape} "
                    "in the adapter"
                )
    rows = {name: made.tensors[name].rows for name in (ends.embedding, ends.head) if name in made.tensors}
    if len(set(rows.values())) > 1:
        raise OperatorError(
            f"the adapter resizes the embedding to {rows[ends.embedding]} rows and the head to {rows[ends.head]}"
        )
