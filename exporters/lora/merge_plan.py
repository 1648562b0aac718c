"""Plans a merge: assigns every adapter tensor to a tensor of the base model, unties the head, resizes the vocabulary,
and checks shapes.

It computes no values; `exporters.lora.merged_weights` executes the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from exporters.hf_model.architectures import change_settings, known_architecture, language_settings
from exporters.hf_model.families.llama import LLAMA
from exporters.hf_model.family import Architecture
from exporters.hf_model.tensor_files import SafetensorsFolder, TensorInfo
from exporters.lora.adapter import Adapter, Change, read_matrix
from recipes.problems import OperatorError, printable

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Weighted:
    """An adapter and its weight in the sum."""

    adapter: Adapter
    weight: float = 1.0


@dataclass(frozen=True)
class PlannedPart:
    """One adapter's effect on one tensor: a change, a replacement by a full tensor, or both."""

    weight: float
    change: Change | None
    replacement: TensorInfo | None


@dataclass
class MergePlan:
    """A merged model before its values are computed.

    Attributes:
        config: the base model's config, with the head untied or the vocabulary resized if the adapters need it.
        tensors: its tensors, with their types and shapes.
        sources: the base model's tensor that each is computed from.
        parts: the adapters' effects on each changed tensor, in the adapters' order.
        warnings: what an operator should know about the result.
    """

    config: dict[str, Any]
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    parts: dict[str, list[PlannedPart]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> list[str]:
        """Names of the tensors that differ from the base model's."""
        return sorted(self.parts)


def plan_merge(
    base: SafetensorsFolder, config: dict[str, Any], adapters: Sequence[Weighted], *, dtype: str, untie: bool
) -> MergePlan:
    """Assign every adapter tensor to a tensor of the base model.

    Args:
        base: a model's tensors, 16- or 32-bit.
        config: its config.json, with `tie_word_embeddings` explicit.
        adapters: the adapters with their weights. Those of a tied model are modified: changes of the head become
            changes of the embedding.
        dtype: "base" keeps each tensor's type; or float32, bfloat16, float16.
        untie: give a tied model a separate head if an adapter changes only the embedding or the head.

    Raises:
        OperatorError: the base model lacks a changed tensor or has it in another shape, or two changes conflict.
    """
    family = known_architecture(config) or LLAMA
    made = MergePlan(dict(config), sources={name: name for name in base.tensors})
    stored = family.names_in(base.tensors)
    for item in adapters:
        _use_stored_names(item.adapter, family, stored)
    ends = _Ends(stored.get(family.embedding, family.embedding), _head_in(family, stored))
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
            change, replacement = item.adapter.changes.get(name), item.adapter.replacements.get(name)
            if change is not None or replacement is not None:
                parts.append(PlannedPart(item.weight, change, replacement))
    return made


def _use_stored_names(adapter: Adapter, family: Architecture, stored: Mapping[str, str]) -> None:
    """Rename what an adapter changes to the names that the base model's files have for it."""
    for found in (adapter.changes, adapter.replacements):
        renamed = {stored.get(family.own_name(name), name): value for name, value in found.items()}
        if len(renamed) < len(found):
            raise OperatorError(f"{adapter.folder} changes a tensor of the base model twice, under two names")
        found.clear()
        found.update(renamed)  # type: ignore[arg-type]


def _head_in(family: Architecture, stored: Mapping[str, str]) -> str:
    """The name that the base model's files have, or would have, for the output head."""
    if family.head in stored:
        return stored[family.head]
    embedding = stored.get(family.embedding, family.embedding)
    for old, new in family.stored:
        if family.head.startswith(new) and any(embedding.startswith(other) for other, _ in family.stored):
            return old + family.head.removeprefix(new)
    return family.head


@dataclass(frozen=True)
class _Ends:
    """Names of the two matrices with a row for each token."""

    embedding: str
    head: str


def _follow_tie(
    made: MergePlan, base: SafetensorsFolder, adapters: Sequence[Weighted], ends: _Ends, *, untie: bool
) -> None:
    """Keep the head tied to the embedding, or give it a separate matrix.

    PEFT adds a LoRA of one of the two to the shared matrix, although training used the other without it; `untie` keeps
    what was trained. Modules that are saved as full tensors are untied already.
    """
    both = {ends.embedding, ends.head}
    saved = [_saves_tied_matrix(item.adapter, base, ends) for item in adapters]  # a call may drop an adapter's head
    if any(saved):
        return
    replaced = {name for item in adapters for name in item.adapter.replacements}
    changed = {name for item in adapters for name in item.adapter.changes}
    split = (replaced & both) - changed
    if changed & both and not split and not untie:
        made.warnings.append(
            "the adapter changes the embedding or the head of a model in which they share one matrix: the merge "
            "changes both, as PEFT does, and the model answers differently than in training; set "
            "untie_word_embeddings = true to keep what was trained"
        )
        for item in adapters:
            _move_to_embedding(item.adapter, ends)
    elif split or (untie and changed & both):
        made.config = change_settings(made.config, tie_word_embeddings=False)
        made.sources[ends.head] = ends.embedding


def _saves_tied_matrix(adapter: Adapter, base: SafetensorsFolder, ends: _Ends) -> bool:
    """Whether an adapter saved the shared matrix: under both names (then its head is dropped), or resized."""
    embedding, head = adapter.replacements.get(ends.embedding), adapter.replacements.get(ends.head)
    if embedding is None:
        return False
    if head is None:
        return embedding.shape != base.tensors[ends.embedding].shape
    if embedding.shape != head.shape or not np.array_equal(read_matrix(embedding), read_matrix(head)):
        return False
    del adapter.replacements[ends.head]
    return True


def _move_to_embedding(adapter: Adapter, ends: _Ends) -> None:
    """Turn changes of a tied model's head into changes of its embedding."""
    for found in (adapter.changes, adapter.replacements):
        if ends.head in found:
            if ends.embedding in found:
                raise OperatorError(
                    "the adapter changes the embedding and the head, which share one matrix in this base model"
                )
            found[ends.embedding] = found.pop(ends.head)  # type: ignore[assignment]


def _shape(made: MergePlan, name: str, info: TensorInfo, adapters: Sequence[Weighted], ends: _Ends) -> tuple[int, ...]:
    """The tensor's shape in the merged model: the base's, or a resized vocabulary's."""
    shapes = {item.adapter.replacements[name].shape for item in adapters if name in item.adapter.replacements}
    if not shapes or shapes == {info.shape}:
        return info.shape
    (shape, *others) = sorted(shapes)
    resized = name in (ends.embedding, ends.head) and len(shape) == 2 and shape[1:] == info.shape[1:]
    if not resized or others:
        raise OperatorError(f"{printable(name, 200)} is {info.shape} in the base model and {shape} in the adapter")
    if len(adapters) > 1 or adapters[0].weight != 1.0:
        raise OperatorError(
            f"{printable(name, 200)} has {info.shape[0]} rows in the base model and {shape[0]} in the adapter",
            "merge an adapter with a resized vocabulary alone and with weight 1",
        )
    made.config = change_settings(made.config, vocab_size=shape[0])
    return shape


def _check_places(made: MergePlan, base: SafetensorsFolder, adapters: Sequence[Weighted], ends: _Ends) -> None:
    for item in adapters:
        for name in (*item.adapter.changes, *item.adapter.replacements):
            if name not in made.tensors:
                module = printable(name.removesuffix(".weight"), 200)
                raise OperatorError(f"the adapter changes {module}, which the base model {base.folder} does not have")
        for name, change in item.adapter.changes.items():
            if made.tensors[name].shape != change.shape:
                raise OperatorError(
                    f"{printable(change.module, 200)} is {made.tensors[name].shape} in the base model and "
                    f"{change.shape} in the adapter"
                )
    rows = {name: made.tensors[name].rows for name in (ends.embedding, ends.head) if name in made.tensors}
    if len(set(rows.values())) > 1:
        raise OperatorError(
            f"the adapter resizes the embedding to {rows[ends.embedding]} rows and the head to {rows[ends.head]}"
        )
