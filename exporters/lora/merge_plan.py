"""Plans a merge: assigns every adapter tensor to a tensor of the base model, unties the head, resizes the vocabulary,
and checks shapes.

It computes no values; `exporters.lora.merged_weights` executes the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from exporters.hf_model.architectures import change_settings, known_architecture, language_settings
from exporters.hf_model.families.llama import LLAMA
from exporters.hf_model.family import Architecture
from exporters.hf_model.tensor_files import SafetensorsFolder, TensorInfo
from exporters.lora.adapter import Adapter, BiasChange, Change, TokenRows
from exporters.lora.settings import BY_PEFT
from exporters.lora.tied_ends import Ends, follow_tie
from recipes.problems import OperatorError, printable

_ANOTHER_BASE = (
    "the adapter belongs to another base model or another revision of it; use the one that adapter_config.json names "
    "(base_model_name_or_path, revision)"
)
_STORED_TRANSPOSED = {"gpt2": ("c_attn", "c_proj", "c_fc"), "openai-gpt": ("c_attn", "c_proj", "c_fc")}
"""Layers that transformers stores transposed (Conv1D), by model type. PEFT goes by the layer's class too, whatever
fan_in_fan_out in the adapter's settings says."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Weighted:
    """An adapter and its weight in the sum."""

    adapter: Adapter
    weight: float = 1.0


@dataclass(frozen=True)
class PlannedPart:
    """One adapter's effect on one tensor: a replacement by a full tensor, then a change, or new rows of tokens; or
    what is added to a bias."""

    weight: float
    change: Change | None = None
    replacement: TensorInfo | None = None
    token_rows: TokenRows | None = None
    bias_change: BiasChange | None = None


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
    _transpose_stored(config, adapters)
    family = known_architecture(config) or LLAMA
    made = MergePlan(dict(config), sources={name: name for name in base.tensors})
    stored = {family.own_name(name): name for name in base.tensors}
    for item in adapters:
        _use_stored_names(item.adapter, family, stored)
    ends = Ends(stored.get(family.embedding, family.embedding), _head_in(family, stored))
    if language_settings(config)["tie_word_embeddings"]:
        _follow_tie(made, base, adapters, ends, untie=untie)
    else:
        _check_follows(adapters)
    for name, source in made.sources.items():
        info = base.tensors[source]
        shape = _shape(made, name, info, adapters, ends)
        made.tensors[name] = replace(info, name=name, shape=shape, dtype=DTYPES.get(dtype, info.dtype))
    _check_places(made, base, adapters, ends)
    for item in adapters:
        adapter = item.adapter
        for name in adapter.targets:
            part = PlannedPart(
                item.weight,
                adapter.changes.get(name),
                adapter.replacements.get(name),
                adapter.token_rows.get(name),
                adapter.bias_changes.get(name),
            )
            made.parts.setdefault(name, []).append(part)
    return made


def _use_stored_names(adapter: Adapter, family: Architecture, stored: Mapping[str, str]) -> None:
    """Rename what an adapter changes to the names that the base model's files have for it."""
    for found in (adapter.changes, adapter.replacements, adapter.token_rows, adapter.bias_changes):
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


def _transpose_stored(config: dict[str, Any], adapters: Sequence[Weighted]) -> None:
    names = _STORED_TRANSPOSED.get(config.get("model_type", ""), ())
    for item in adapters:
        for change in item.adapter.changes.values():
            if change.module.rpartition(".")[2] in names:
                change.transposed = True
                if change.initial is not None:
                    raise OperatorError(
                        f"{item.adapter.folder}: init_lora_weights — got {change.initial}; merge does not support it "
                        f"in layers that {config['model_type']} stores transposed",
                        BY_PEFT,
                    )


def _follow_tie(
    made: MergePlan, base: SafetensorsFolder, adapters: Sequence[Weighted], ends: Ends, *, untie: bool
) -> None:
    """Keep the head tied to the embedding, or give it a separate matrix."""
    shape = base.tensors[ends.embedding].shape if ends.embedding in base.tensors else ()
    tie = follow_tie([item.adapter for item in adapters], shape, ends, untie=untie)
    if tie.warning:
        made.warnings.append(tie.warning)
    if not tie.kept:
        made.config = change_settings(made.config, tie_word_embeddings=False)
        made.sources[ends.head] = ends.embedding


def _check_follows(adapters: Sequence[Weighted]) -> None:
    for item in adapters:
        if item.adapter.follows_tie:
            name = printable(item.adapter.follows_tie[0], 200)
            raise OperatorError(
                f"{item.adapter.folder}: trainable_token_indices names {name}, but the file has no rows of it, and "
                "this base model has a separate matrix for it",
                "the adapter belongs to another base model, in which embedding and head share one matrix",
            )


def _shape(made: MergePlan, name: str, info: TensorInfo, adapters: Sequence[Weighted], ends: Ends) -> tuple[int, ...]:
    """The tensor's shape in the merged model: the base's, or a resized vocabulary's."""
    shapes = {item.adapter.replacements[name].shape for item in adapters if name in item.adapter.replacements}
    if not shapes or shapes == {info.shape}:
        return info.shape
    (shape, *others) = sorted(shapes)
    resized = name in (ends.embedding, ends.head) and len(shape) == 2 and shape[1:] == info.shape[1:]
    if not resized or others:
        raise OperatorError(
            f"{printable(name, 200)} is {info.shape} in the base model and {shape} in the adapter", _ANOTHER_BASE
        )
    if len(adapters) > 1 or adapters[0].weight != 1.0:
        raise OperatorError(
            f"{printable(name, 200)} has {info.shape[0]} rows in the base model and {shape[0]} in the adapter",
            "merge an adapter with a resized vocabulary alone and with weight 1",
        )
    made.config = change_settings(made.config, vocab_size=shape[0])
    return shape


def _check_places(made: MergePlan, base: SafetensorsFolder, adapters: Sequence[Weighted], ends: Ends) -> None:
    for item in adapters:
        adapter = item.adapter
        for name in adapter.bias_changes:
            if name not in made.tensors:
                raise OperatorError(
                    f"the adapter adds to the bias of {printable(name.removesuffix('.bias'), 200)} (lora_bias), but "
                    f"this layer has no bias in the base model {base.folder}, so no merged model equals the adapter",
                    "serve base model and adapter with PEFT, or train without lora_bias",
                )
        for name in adapter.targets:
            if name not in made.tensors:
                module = printable(name.removesuffix(".weight"), 200)
                raise OperatorError(
                    f"the adapter changes {module}, which the base model {base.folder} does not have", _ANOTHER_BASE
                )
        for name, change in adapter.changes.items():
            if made.tensors[name].shape != change.shape:
                raise OperatorError(
                    f"{printable(change.module, 200)} is {made.tensors[name].shape} in the base model and "
                    f"{change.shape} in the adapter",
                    _ANOTHER_BASE,
                )
        _check_rows(made, adapter)
        _check_biases(base, adapter)
    rows = {name: made.tensors[name].rows for name in (ends.embedding, ends.head) if name in made.tensors}
    if len(set(rows.values())) > 1:
        raise OperatorError(
            f"the adapter resizes the embedding to {rows[ends.embedding]} rows and the head to {rows[ends.head]}"
        )


def _check_rows(made: MergePlan, adapter: Adapter) -> None:
    """Check that single tokens with new rows are in the vocabulary, and their rows as wide as the matrix."""
    for name, rows in adapter.token_rows.items():
        shape, found = made.tensors[name].shape, rows.tensor.shape
        if len(shape) != 2 or found[1] != shape[1]:
            raise OperatorError(
                f"{printable(name, 200)} is {shape} in the base model, and the adapter has {found} as rows of tokens",
                _ANOTHER_BASE,
            )
        last = max(rows.indices, default=-1)
        if last >= shape[0]:
            raise OperatorError(
                f"{adapter.folder}: trainable_token_indices has token {last}, but {printable(name, 200)} "
                f"has {shape[0]} rows in the base model",
                "resize the base model's vocabulary as in training and save it, and use that folder as the model",
            )


def _check_biases(base: SafetensorsFolder, adapter: Adapter) -> None:
    """Check that the adapter's file has every bias that was trained: PEFT before 0.13 could lose them when it saved."""
    trained = adapter.config.get("bias") or "none"
    if trained == "none":
        return
    for name in base.tensors:
        module, _, leaf = name.rpartition(".")
        is_trained = leaf == "bias" and (trained == "all" or f"{module}.weight" in adapter.changes)
        if is_trained and name not in adapter.replacements:
            raise OperatorError(
                f"{adapter.folder}: bias = {trained} trained {printable(name, 200)}, but the adapter's file does not "
                "have it",
                "save the adapter again with a newer PEFT, from the process or checkpoint that trained it",
            )
