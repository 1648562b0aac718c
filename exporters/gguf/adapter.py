"""Writes a LoRA adapter as a GGUF file, which llama.cpp applies to a base model when it loads it.

llama.cpp adds alpha / rank * B A to each matrix, or plain B A when the file's alpha is zero. If scales differ between
layers (rank and alpha patterns, rsLoRA), they are multiplied into B and the file's alpha is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines.files import atomic_file
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_write import float32_value, text_value, uint32_value
from exporters.gguf.file_writer import Piece, new_tensor, ready, write_file
from exporters.gguf.quant_types import Shape
from exporters.gguf.write import Model, row_order
from exporters.lora.adapter import Adapter, Change, read_matrix
from recipes import quantities
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable

AdapterType = Literal["F32", "F16"]


@dataclass(frozen=True)
class AdapterPlan:
    """The contents of the file: the changes and the alpha.

    Attributes:
        changes: by the GGUF name of the base model's tensor.
        alpha: llama.cpp's alpha; 0 when the scales are in the matrices.
        parameters: number of weights.
    """

    changes: dict[str, Change]
    alpha: float
    parameters: int

    def bytes(self, dtype: AdapterType) -> int:
        """Size of the file's tensors."""
        return TYPES[dtype].row_bytes(self.parameters)


def plan_adapter(model: Model, adapter: Adapter) -> AdapterPlan:
    """Find the base model's tensor for every change.

    Raises:
        OperatorError: the format does not support a part of the adapter, or the base model lacks a tensor; names it.
    """
    check_kinds(adapter)
    names = {source.name: name for name, source in model.sources.items() if source.name}
    stored = model.architecture.names_in(model.weights.tensors)
    changes: dict[str, Change] = {}
    for module, change in adapter.changes.items():
        target = stored.get(model.architecture.own_name(module), module)
        name = names.get(target)
        if name is None:
            raise OperatorError(
                f"{adapter.folder} changes {printable(change.module, 200)}, but the GGUF file of {model.folder} has "
                "no separate tensor for it",
                "the adapter belongs to another base model, or changes a tied output head",
            )
        if model.weights.tensors[target].shape != change.shape:
            raise OperatorError(
                f"{adapter.folder}: {printable(change.module, 200)} — got shape {change.shape}; the base model has "
                f"{model.weights.tensors[target].shape}"
            )
        changes[name] = change
    ranks_and_scales = {(_rank(change), change.scale) for change in changes.values()}
    uniform = len(ranks_and_scales) == 1
    alpha = next(rank * scale for rank, scale in ranks_and_scales) if uniform else 0.0
    parameters = sum(_values(change) for change in changes.values())
    return AdapterPlan(dict(sorted(changes.items())), alpha, parameters)


def write_adapter(model: Model, plan: AdapterPlan, path: Path, dtype: AdapterType) -> None:
    """Write the file under a temporary name, make it durable, and rename it.

    Raises:
        OperatorError: a value is not finite, or outside the range of F16.
    """
    keys = {
        "general.architecture": text_value(model.architecture.name),
        "general.type": text_value("adapter"),
        "general.name": text_value(path.stem),
        "adapter.type": text_value("lora"),
        "adapter.lora.alpha": float32_value(plan.alpha),
        "general.file_type": uint32_value(FILE_TYPES[dtype].id),
    }
    tensors = []
    for name, change in plan.changes.items():
        rows, columns = change.shape
        for side, shape in (("a", (_rank(change), columns)), ("b", (rows, _rank(change)))):
            matrix = Shape(f"{name}.lora_{side}", *shape)
            tensor = new_tensor(matrix, TYPES[dtype].id, matrix.rows * TYPES[dtype].row_bytes(matrix.columns))
            tensors.append((tensor, _pieces(model, name, change, side, dtype, folded=not plan.alpha)))
    with atomic_file(path) as file:
        write_file(file, keys, tensors)


def _pieces(model: Model, name: str, change: Change, side: str, dtype: AdapterType, *, folded: bool) -> Iterator[Piece]:
    """One matrix of a change as one piece: LoRA matrices are small."""
    values = _a(change) if side == "a" else _b(model, name, change, folded=folded)
    yield ready(_stored(f"{name}.lora_{side}", values, dtype), values.size)


def check_kinds(adapter: Adapter) -> None:
    """Refuse an adapter with parts that GGUF adapters do not support.

    Raises:
        OperatorError: names the part.
    """
    hint = "merge the adapter into its base model instead"
    kinds: tuple[tuple[Iterable[str], str], ...] = (
        (adapter.token_rows, "rows of single tokens (trainable_token_indices)"),
        (adapter.bias_changes, "a change of a bias (lora_bias)"),
        ([name for name in adapter.replacements if name.endswith(".bias")], "a trained bias (bias)"),
        (adapter.replacements, "a full tensor (modules_to_save)"),
    )
    for names, kind in kinds:
        for name in names:
            raise OperatorError(
                f"{adapter.folder} contains {kind}, {printable(name, 200)}, which GGUF adapters do not support", hint
            )
    for change in adapter.changes.values():
        kind = (
            "DoRA"
            if change.magnitude is not None
            else "LoRA on an embedding"
            if change.transposed
            else f"init_lora_weights = {change.initial}"
            if change.initial is not None
            else ""
        )
        if kind:
            raise OperatorError(
                f"{adapter.folder}: {printable(change.module, 200)} uses {kind}, which GGUF adapters do not support",
                hint,
            )


def _rank(change: Change) -> int:
    assert change.a is not None
    return change.a.shape[0]


def _values(change: Change) -> int:
    return _rank(change) * sum(change.shape)


def _a(change: Change) -> NDArray[np.float32]:
    """float32 [r, columns]."""
    assert change.a is not None
    values: NDArray[np.float32] = read_matrix(change.a)
    return values


def _b(model: Model, name: str, change: Change, *, folded: bool) -> NDArray[np.float32]:
    """float32 [rows, r], in the order of the base model's rows in the GGUF file."""
    assert change.b is not None
    values: Any = read_matrix(change.b)
    values = values[row_order(model, name, len(values))]
    return np.ascontiguousarray(values * np.float32(change.scale) if folded else values)


def _stored(name: str, values: NDArray[np.float32], dtype: AdapterType) -> NDArray[Any]:
    """float32 [rows, columns] → float32 or float16 [rows, columns]."""
    with np.errstate(over="ignore"):
        stored = values if dtype == "F32" else values.astype(np.float16)
    if not np.isfinite(stored).all():
        largest = float(np.abs(values).max())
        problem = (
            f"{quantities.number(largest)}, which is outside the range of F16"
            if math.isfinite(largest)
            else "a value that is not finite"
        )
        raise OperatorError(
            f"{printable(name, 200)} contains {problem}", "the adapter is damaged, or needs adapter_type F32"
        )
    return stored
