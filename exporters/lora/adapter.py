"""Reads a LoRA adapter folder of PEFT: assigns every tensor to a parameter of the base model, or refuses it by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engines.artifacts.adapter_folder import BASE_JSON
from engines.files import refuse_special_files
from engines.json_text import read_object
from exporters.hf_model.tensor_files import TensorInfo, read_float_rows, read_header, row_chunks
from exporters.lora.settings import Initial, initial_of, read_settings, scale_of, weights_file
from exporters.lora.tensor_names import Place, place_of
from recipes.problems import OperatorError, printable

_INCOMPLETE = "the adapter was not saved completely"


@dataclass
class Change:
    """An adapter's change of one weight.

    A linear layer's is scale * B A, with A [r, in] and B [out, r]; scale * (B A) transposed for an embedding, with A
    [r, rows] and B [columns, r], and for a layer that stores its weight transposed (GPT-2's Conv1D), with A [r, in] and
    B [out, r]. With a magnitude (DoRA, arXiv 2402.09353), the changed weight is scaled so that its norms equal the
    magnitude: the norms of rows for a linear layer, of columns for an embedding.

    Attributes:
        module: the layer's name in the base model.
        a, b: the two matrices.
        transposed: whether the layer is an embedding or stores its weight transposed.
        magnitude: the norms, or None.
        scale: alpha / r, or alpha / sqrt(r).
        initial: the initialization that took a part out of the base model's weight before training; the change is added
            to what is left.
    """

    module: str
    a: TensorInfo | None = None
    b: TensorInfo | None = None
    transposed: bool = False
    magnitude: TensorInfo | None = None
    scale: float = 1.0
    initial: Initial | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the changed weight."""
        assert self.a is not None
        assert self.b is not None
        shape = (self.b.shape[0], self.a.shape[1])
        return (shape[1], shape[0]) if self.transposed else shape

    @property
    def norms(self) -> int:
        """Number of norms in its magnitude."""
        return self.shape[1] if self.transposed else self.shape[0]


@dataclass(frozen=True)
class TokenRows:
    """New rows for single tokens, `tensor` [indices, columns] (PEFT's trainable_token_indices)."""

    indices: tuple[int, ...]
    tensor: TensorInfo


@dataclass(frozen=True)
class BiasChange:
    """scale * `tensor` [out], which is added to a layer's bias (PEFT's lora_bias)."""

    tensor: TensorInfo
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter with all its tensors assigned to parameters of the base model, each by the parameter's name.

    Attributes:
        folder: its folder.
        config: its settings.
        changes: changes of weights.
        replacements: full tensors: modules_to_save, trained biases, resized or saved embeddings.
        token_rows: new rows of single tokens.
        bias_changes: changes of biases.
        renamed: the names that PEFT expects, by the tensors' names in the file, where the two differ.
        follows_tie: modules whose token rows are stored with those of the matrix that they share.
    """

    folder: Path
    config: dict[str, Any]
    changes: dict[str, Change] = field(default_factory=dict)
    replacements: dict[str, TensorInfo] = field(default_factory=dict)
    token_rows: dict[str, TokenRows] = field(default_factory=dict)
    bias_changes: dict[str, BiasChange] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    follows_tie: list[str] = field(default_factory=list)

    @property
    def base(self) -> dict[str, Any]:
        """The adapter's base.json, which describes its base model; empty without the file."""
        path = self.folder / BASE_JSON
        return read_object(path) if path.is_file() else {}

    @property
    def targets(self) -> list[str]:
        """Names of the parameters that it changes."""
        return list({**self.changes, **self.replacements, **self.token_rows, **self.bias_changes})


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's settings and the headers of its tensors.

    Raises:
        OperatorError: the folder is not a LoRA adapter, has a feature or tensor that the merge does not support, or
            lacks a tensor; the message names it.
    """
    refuse_special_files(folder)
    config = read_settings(folder)
    path = weights_file(folder)
    adapter = Adapter(folder, config)
    found = [(info, _place(path, info)) for info in read_header(path)[0]]
    _check_one_adapter(path, [place for _, place in found])
    _assign_full(adapter, path, found)
    for info, place in found:
        if place.part not in ("full", "untrained", "bias", "tokens"):
            _assign_matrix(adapter, path, info, place)
    for change in adapter.changes.values():
        _check_change(path, change)
        _check_magnitude(path, config, change)
        assert change.a is not None
        change.scale = scale_of(config, change.module, change.a.shape[0])
        change.initial = None if change.transposed else initial_of(folder, config)  # PEFT leaves embeddings whole
    for info, place in found:
        if place.part == "bias":
            _assign_bias(adapter, path, info, place)
        elif place.part == "tokens":
            _assign_tokens(adapter, path, info, place)
    _check_biases(adapter, path)
    _check_saved(adapter, path)
    _check_tokens(adapter, path)
    adapter.renamed.update(_names_for_peft(adapter, found))
    if not adapter.targets:
        raise OperatorError(f"{path} contains no tensors", _INCOMPLETE)
    return adapter


def read_matrix(info: TensorInfo) -> Any:
    """An adapter's tensor in its shape, float32 [rows, columns] or [length]. LoRA's are small: r times a width."""
    return read_float_rows(info, 0, info.rows).reshape(info.shape)


def are_equal(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors have the same shape and values; reads a few rows at a time."""
    return one.shape == other.shape and all(
        np.array_equal(read_float_rows(one, *part), read_float_rows(other, *part))
        for part in row_chunks(one.rows, one.columns)
    )


def _place(path: Path, info: TensorInfo) -> Place:
    known_as = printable(info.name, 200)
    if info.dtype not in ("F32", "F16", "BF16"):
        raise OperatorError(f"{path}: {known_as} has type {info.dtype}; allowed F32, F16, BF16")
    place = place_of(info.name)
    if place is None:
        raise OperatorError(
            f"{path}: tensor {known_as} is not supported by merge",
            "merge supports LoRA of linear layers and embeddings, DoRA magnitudes, biases, modules_to_save and "
            "trainable_token_indices",
        )
    return place


def _check_one_adapter(path: Path, places: Iterable[Place]) -> None:
    names = sorted({place.adapter for place in places if place.adapter is not None})
    if len(names) > 1:
        raise OperatorError(
            f"{path} contains several adapters ({printable(', '.join(names), 200)}); merge needs one",
            "save each with PEFT's save_pretrained(selected_adapters=[NAME]) and name its folder",
        )


def _assign_full(adapter: Adapter, path: Path, found: list[tuple[TensorInfo, Place]]) -> None:
    """Assign full tensors. PEFT may save one under several names; they must be equal. The state before training, which
    it saves of a resized vocabulary, is ignored."""
    standard: dict[str, bool] = {}
    for info, place in found:
        if place.part != "full":
            continue
        target = place.target
        known = adapter.replacements.get(target)
        if known is not None and not are_equal(known, info):
            raise OperatorError(
                f"{path}: {printable(known.name, 200)} and {printable(info.name, 200)} are the same tensor of the base "
                "model, with different values",
                "load the adapter with PEFT and save it again, so that one of them remains",
            )
        if known is None or (place.standard and not standard[target]):
            adapter.replacements[target], standard[target] = info, place.standard
    trained = {place.target for _, place in found if place.part in ("full", "tokens")}
    for info, place in found:
        if place.part == "untrained" and place.target not in trained:
            raise OperatorError(
                f"{path} has {printable(info.name, 200)}, which is the state before training, but not the trained "
                "tensor",
                _INCOMPLETE,
            )


def _assign_matrix(adapter: Adapter, path: Path, info: TensorInfo, place: Place) -> None:
    change = adapter.changes.setdefault(place.target, Change(place.module))
    change.transposed |= place.part.startswith("embedding")
    part = place.part.removeprefix("embedding_")
    known = getattr(change, part)
    if known is not None and not are_equal(known, info):
        raise OperatorError(
            f"{path}: {printable(known.name, 200)} and {printable(info.name, 200)} are the same matrix of "
            f"{printable(place.module, 200)}, with different values"
        )
    setattr(change, part, info)


def _assign_bias(adapter: Adapter, path: Path, info: TensorInfo, place: Place) -> None:
    """lora_B's bias: PEFT adds scale times its values to the layer's own bias."""
    change = adapter.changes.get(f"{place.module}.weight")
    name = printable(info.name, 200)
    if change is None or not adapter.config.get("lora_bias"):
        raise OperatorError(
            f"{path}: tensor {name} belongs to a layer with LoRA and lora_bias; "
            f"{'lora_bias is not set' if change is not None else 'the layer has no LoRA matrices'}",
            "the adapter's settings and tensors come from different training runs",
        )
    assert change.b is not None
    if info.shape != (change.b.shape[0],):
        raise OperatorError(f"{path}: {name} has shape {info.shape}; allowed ({change.b.shape[0]},)")
    adapter.bias_changes[place.target] = BiasChange(info, change.scale)


def _assign_tokens(adapter: Adapter, path: Path, info: TensorInfo, place: Place) -> None:
    indices = _token_indices(adapter.config, place.module)
    name = printable(info.name, 200)
    if indices is None:
        raise OperatorError(
            f"{path}: {name} has rows of single tokens, but trainable_token_indices does not name its module",
            "the adapter's settings and tensors come from different training runs",
        )
    if len(info.shape) != 2 or info.shape[0] != len(indices):
        raise OperatorError(f"{path}: {name} has shape {info.shape}; trainable_token_indices has {len(indices)} tokens")
    if place.target in adapter.changes:
        raise OperatorError(f"{path}: {printable(place.module, 200)} has LoRA matrices and rows of single tokens")
    adapter.token_rows[place.target] = TokenRows(tuple(indices), info)


def _token_indices(config: dict[str, Any], module: str) -> list[int] | None:
    value = config.get("trainable_token_indices")
    if isinstance(value, list):
        return value
    return next((indices for name, indices in (value or {}).items() if _is_named(module, name)), None)


def _check_tokens(adapter: Adapter, path: Path) -> None:
    """Check that rows of every module with trainable tokens are there. PEFT stores the rows of a tied head with the
    embedding's, if both train the same tokens."""
    value = adapter.config.get("trainable_token_indices")
    modules = {target.rpartition(".")[0]: rows for target, rows in adapter.token_rows.items()}
    wanted = {"": value} if isinstance(value, list) else dict(value or {})
    for name, indices in wanted.items():
        if any(_is_named(module, name) for module in modules):
            continue
        if not any(rows.indices == tuple(indices) for rows in modules.values()):
            raise OperatorError(
                f"{path}: trainable_token_indices has {len(indices)} tokens{f' of {printable(name, 200)}' * bool(name)}"
                ", but the file has no rows of them",
                _INCOMPLETE,
            )
        adapter.follows_tie.append(name)


def _check_change(path: Path, change: Change) -> None:
    name = printable(change.module, 200)
    if change.a is None or change.b is None:
        raise OperatorError(f"{path}: {name} lacks lora_{'A' if change.a is None else 'B'}.weight", _INCOMPLETE)
    shapes = change.a.shape, change.b.shape
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][0] != shapes[1][1]:
        raise OperatorError(f"{path}: {name} has lora_A {shapes[0]} and lora_B {shapes[1]}, with incompatible shapes")
    if change.magnitude is not None and change.magnitude.shape != (change.norms,):
        raise OperatorError(
            f"{path}: {name} has lora_magnitude_vector {change.magnitude.shape}; allowed ({change.norms},)"
        )


def _check_magnitude(path: Path, config: dict[str, Any], change: Change) -> None:
    wanted, found = bool(config.get("use_dora")), change.magnitude is not None
    name = printable(change.module, 200)
    if wanted != found:
        raise OperatorError(
            f"{path}: {name} {'has a' if found else 'lacks its'} lora_magnitude_vector, but use_dora is "
            f"{str(wanted).lower()}",
            "the adapter's settings and tensors come from different training runs",
        )


def _check_biases(adapter: Adapter, path: Path) -> None:
    """Check that every linear layer with LoRA has its bias of lora_B, if the adapter was trained with them."""
    for change in adapter.changes.values():
        wanted = bool(adapter.config.get("lora_bias")) and not change.transposed
        if wanted and f"{change.module}.bias" not in adapter.bias_changes:
            raise OperatorError(
                f"{path}: {printable(change.module, 200)} lacks lora_B.bias, but lora_bias is true", _INCOMPLETE
            )


def _check_saved(adapter: Adapter, path: Path) -> None:
    """Check that full tensors are of modules_to_save, trained biases, or an embedding or head that PEFT saves by
    itself, and that none of modules_to_save is missing."""
    saved = list(adapter.config.get("modules_to_save") or [])
    modules = {target: target.rpartition(".")[0] for target in adapter.replacements}
    for target, module in modules.items():
        if _is_trained_bias(adapter, target) or _is_within(module, [*saved, "embed_tokens", "lm_head"]):
            continue
        raise OperatorError(
            f"{path}: tensor {printable(adapter.replacements[target].name, 200)} is not supported by merge: "
            f"{printable(module, 200)} is not in modules_to_save"
        )
    for name in saved:
        if not any(_is_within(module, [name]) for module in modules.values()):
            raise OperatorError(
                f"{path}: modules_to_save has {printable(name, 200)}, but the file has no tensor of it", _INCOMPLETE
            )


def _is_trained_bias(adapter: Adapter, target: str) -> bool:
    module, _, leaf = target.rpartition(".")
    trained = adapter.config.get("bias") or "none"
    return leaf == "bias" and (trained == "all" or (trained == "lora_only" and f"{module}.weight" in adapter.changes))


def _is_within(module: str, names: list[str]) -> bool:
    """Whether a module is one of the named ones, or is inside one."""
    parts = module.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(_is_named(part, name) for part in above for name in names)


def _is_named(module: str, name: str) -> bool:
    """PEFT's rule: any end of the module's name, so that `norm` means `input_layernorm` too."""
    return module.endswith(name)


def _names_for_peft(adapter: Adapter, found: list[tuple[TensorInfo, Place]]) -> dict[str, str]:
    """The names that PEFT expects for tensors that it would not find by their names in the file."""
    used = {info.name for info in adapter.replacements.values()}
    return {
        info.name: _standard_name(place)
        for info, place in found
        if not place.standard and place.part != "untrained" and (place.part != "full" or info.name in used)
    }


def _standard_name(place: Place) -> str:
    part = {
        "a": "lora_A.weight",
        "b": "lora_B.weight",
        "bias": "lora_B.bias",
        "embedding_a": "lora_embedding_A",
        "embedding_b": "lora_embedding_B",
        "magnitude": "lora_magnitude_vector",
        "tokens": "token_adapter.trainable_tokens_delta",
    }.get(place.part, place.leaf)
    return f"base_model.model.{place.module}.{part}"
