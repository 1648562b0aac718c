"""Writes a model folder as a GGUF file: the header, then each tensor a few rows at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.files import atomic_file
from engines.llama.ggml_types import PLAIN_TYPES, TYPES
from engines.llama.quantizer import KernelQuantizer, Quantizer
from exporters.gguf.file_names import ModelName
from exporters.gguf.file_writer import Piece, Progress, new_tensor, not_finite, ready, write_file
from exporters.gguf.importance import IMPORTANCE_FILE, Importance, importance_keys, weighted_chunks
from exporters.gguf.metadata import model_keys
from exporters.gguf.quant_types import Choice, FilePlan, Shape, plan_file, shape_of
from exporters.gguf.vocab import Vocabulary, read_vocabulary, vocabulary_keys
from exporters.hf_model.architectures import architecture_of, language_settings, window_warning
from exporters.hf_model.family import Architecture, Packed, Tensor, kv_heads
from exporters.hf_model.model_folder import open_weights, read_config
from exporters.hf_model.tensor_files import Weights
from exporters.hf_model.tied_head import with_own_head
from recipes import quantities
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, either, printable

_IGNORED = ("rotary_emb.inv_freq",)

_FIRST = ("token_embd.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Source:
    """Where a GGUF tensor comes from: tensors of the folder, or fixed values.

    Attributes:
        names: of the tensors, one, or one per expert, as the folder has them; empty for fixed values.
        heads: how many heads have their rows in rotary order; 0 for the folder's order.
        offset: is added to every value.
        values: the fixed values, float32 [columns].
        packed: how the only tensor has the values of all experts; None for other tensors.
    """

    names: tuple[str, ...] = ()
    heads: int = 0
    offset: float = 0.0
    values: NDArray[np.float32] | None = None
    packed: Packed | None = None

    @property
    def name(self) -> str:
        """The folder's tensor, if it is one alone that is stored without a change of its values; else empty."""
        return self.names[0] if len(self.names) == 1 and not self.offset and self.packed is None else ""


@dataclass(frozen=True)
class Model:
    """A model folder whose tensors are mapped to GGUF names, for writing in any file type.

    `config` has the language model's settings; `warnings` say what an operator should know about its files. `title` is
    the model's name in its files; without one, each file's own name is.
    """

    folder: Path
    config: dict[str, Any]
    architecture: Architecture
    weights: Weights
    vocabulary: Vocabulary
    sources: dict[str, Source]
    shapes: list[Shape]
    warnings: list[str] = field(default_factory=list)
    title: ModelName | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(shape.rows * shape.columns for shape in self.shapes)

    def plan(self, file_type: str, *, importance: bool = False) -> FilePlan:
        """The type of every tensor in a file of this type, with or without an importance matrix."""
        layers = int(self.config["num_hidden_layers"])
        return plan_file(
            file_type,
            self.shapes,
            layers=layers,
            gqa=int(self.config["num_attention_heads"]) // kv_heads(self.config),
            importance=importance,
            seventy_b=self.architecture.is_seventy_b(layers),
        )


def read_model(folder: Path, weights: Weights | None = None) -> Model:
    """Read everything except the weights, and map every tensor to its GGUF name.

    Args:
        folder: the model's config and tokenizer, and its weights unless they are given.
        weights: its tensors, if the folder does not contain them.

    Raises:
        OperatorError: a model, tensor, setting or tokenizer is not supported; the message names it.
    """
    config = read_config(folder)
    architecture = architecture_of(folder, config)
    weights = weights or open_weights(folder)
    settings = with_own_head(language_settings(config), weights)
    sources, shapes = _map_tensors(folder, settings, architecture, weights)
    vocabulary = read_vocabulary(folder, settings)
    if vocabulary.model not in architecture.vocabularies:
        raise OperatorError(
            f"{folder}: tokenizer.ggml.model — got {vocabulary.model}; allowed for {architecture.name}: "
            f"{either(architecture.vocabularies)}"
        )
    window = window_warning(settings)
    warnings = [*([window] if window else []), *architecture.warnings(settings), *_left_out(architecture, weights)]
    return Model(folder, settings, architecture, weights, vocabulary, sources, shapes, warnings)


def write_gguf(
    model: Model,
    plan: FilePlan,
    path: Path,
    quantizer: Quantizer | None,
    progress: Progress = lambda _values: None,
    importance: Importance | None = None,
) -> None:
    """Write one file under a temporary name, make it durable, and rename it.

    Args:
        model: what to write.
        plan: the type of every tensor.
        path: the final name.
        quantizer: for the block types; None when the plan has none.
        progress: called with the number of values written since the last call.
        importance: weights of the columns of each matrix; the plan was made with it.

    Raises:
        OperatorError: a value is not finite, or outside the type's range.
    """
    keys = model_keys(
        model.architecture,
        model.config,
        title=model.title or ModelName(path.stem),
        file_type_id=FILE_TYPES[plan.file_type].id,
        parameters=model.parameters,
        takes_blanks=model.vocabulary.takes_blanks,
    )
    if importance is not None:
        keys |= importance_keys(importance, IMPORTANCE_FILE)
    tensors = [
        (
            new_tensor(choice.shape, TYPES[choice.type].id, choice.bytes),
            _pieces(model, choice, quantizer, None if importance is None else importance.of(choice.shape)),
        )
        for choice in plan.choices
    ]
    with atomic_file(path) as file:
        write_file(file, keys | vocabulary_keys(model.vocabulary), tensors, progress)


def _pieces(
    model: Model, choice: Choice, quantizer: Quantizer | None, importance: NDArray[np.float32] | None
) -> Iterator[Piece]:
    """A tensor in its type, a few rows at a time; kernels quantize them while the next are read.

    `importance`: float32 [experts, columns], or None.
    """
    width = TYPES[choice.type].row_bytes(choice.shape.columns)
    for start, stop, weights in weighted_chunks(choice.shape, importance):
        rows = read_rows(model, choice.shape, start, stop)
        if isinstance(quantizer, KernelQuantizer) and choice.type not in PLAIN_TYPES:
            future = quantizer.submit_floats(choice.type, rows, weights)
            yield Piece(future, (stop - start) * width, rows.size)
        else:
            yield ready(encode(choice, rows, quantizer, weights), rows.size)


def read_rows(model: Model, shape: Shape, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor in the order of the GGUF file, float32 [stop - start, columns]; a vector is one row.

    llama.cpp rotates pairs of neighbouring values and transformers rotates pairs across the halves of a head, so each
    head's rows are interleaved: row 2 i + j of the file is row j * width / 2 + i of the folder's tensor. The experts'
    matrices follow each other.
    """
    source = model.sources[shape.name]
    if source.values is not None:
        return source.values.reshape(1, -1)
    if source.packed is not None:
        return _unpacked(model.weights, source.names[0], source.packed, start, stop)
    each = shape.rows // len(source.names)
    found = []
    for number, name in enumerate(source.names):
        low, high = max(start, number * each), min(stop, (number + 1) * each)
        if low < high:
            found.append(_rows_of(model.weights, name, source.heads, low - number * each, high - number * each))
    rows = found[0] if len(found) == 1 else np.concatenate(found)
    return rows + np.float32(source.offset) if source.offset else rows


def _rows_of(weights: Weights, name: str, heads: int, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of one of the folder's tensors, float32 [stop - start, columns], in the file's order."""
    info = weights.tensors[name]
    if not heads:
        return weights.read_rows(name, start, stop)
    if len(info.shape) == 1:  # a bias: its values are the rows
        values = weights.read(name)
        return values[_interleaved(heads, len(values), 0, len(values))].reshape(1, -1)
    order = _interleaved(heads, info.rows, start, stop)
    low, high = int(order.min()), int(order.max()) + 1
    return weights.read_rows(name, low, high)[order - low]


def _unpacked(weights: Weights, name: str, packed: Packed, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor of experts that the folder has column by column, float32 [stop - start, columns].

    One expert's values are in memory at a time.
    """
    shape = weights.tensors[name].shape
    if len(shape) == 2:
        return np.ascontiguousarray(weights.read_rows(name, start, stop)[:, packed.first :: packed.step])
    each, found = shape[2] // packed.step, []
    for expert in range(start // each, -(-stop // each)):
        values = weights.read_rows(name, expert, expert + 1).reshape(shape[1:])[:, packed.first :: packed.step]
        found.append(values[:, max(0, start - expert * each) : stop - expert * each].T)
    return np.ascontiguousarray(np.concatenate(found))


def row_order(model: Model, name: str, rows: int) -> NDArray[np.int64]:
    """For each row of a GGUF tensor, its row in the folder's tensor, int64 [rows]."""
    heads = model.sources[name].heads
    return _interleaved(heads, rows, 0, rows) if heads else np.arange(rows, dtype=np.int64)


def _interleaved(heads: int, rows: int, start: int, stop: int) -> NDArray[np.int64]:
    """For each of these rows of the file, its row in the folder's tensor, int64 [stop - start]."""
    width = rows // heads
    index = np.arange(start, stop, dtype=np.int64)
    head, place = index // width, index % width
    return head * width + (place % 2) * (width // 2) + place // 2


def encode(
    choice: Choice, rows: NDArray[np.float32], quantizer: Quantizer | None, importance: NDArray[np.float32] | None
) -> NDArray[Any]:
    """Encode rows in the chosen type.

    Args:
        choice: the type.
        rows: float32 [rows, columns].
        quantizer: for the block types.
        importance: float32 [columns], or None.

    Returns:
        float32, float16 or uint16 (the bits of bfloat16) [rows, columns]; uint8 [rows, bytes of a row] for block types.

    Raises:
        OperatorError: a value is not finite, or too large for F16; names the tensor.
    """
    name = printable(choice.shape.name, 200)
    if not np.isfinite(rows).all():
        raise not_finite(choice.shape.name)
    if choice.type == "F32":
        return np.ascontiguousarray(rows, "<f4")
    if choice.type == "F16":
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        if not np.isfinite(halves).all():
            raise OperatorError(
                f"{name} contains {quantities.number(float(np.abs(rows).max()))}, outside the range of F16 (±65504)",
                "export BF16 or Q8_0 instead",
            )
        return halves
    if choice.type == "BF16":
        return _bfloat16(rows)
    assert quantizer is not None
    return quantizer.quantize(choice.type, rows, importance)


def _bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 [rows, columns] → uint16 [rows, columns], the bits of bfloat16: to nearest, ties to even."""
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype("<u2")


def _map_tensors(
    folder: Path, settings: dict[str, Any], architecture: Architecture, weights: Weights
) -> tuple[dict[str, Source], list[Shape]]:
    """The source of every GGUF tensor and its shape, in the file's order: embedding, layers, norm, output.

    Raises:
        OperatorError: the family does not have a tensor of the folder, or the folder lacks one of the family's or has
            it in another shape.
    """
    places, stored = architecture.tensors(settings), architecture.names_in(weights.tensors)
    wanted = {source for place in places.values() for source in place.sources}
    for own, name in stored.items():
        tied = own == architecture.head and settings["tie_word_embeddings"]
        if own not in wanted and not tied and not name.endswith(_IGNORED):
            raise OperatorError(f"{folder}: {architecture.name} models have no tensor {printable(name, 200)}")
    sources: dict[str, Source] = {}
    shapes: dict[str, Shape] = {}
    for place in places.values():
        if place.optional and not any(source in stored for source in place.sources):
            continue
        _check_shapes(folder, place, stored, weights)
        names = tuple(stored[source] for source in place.sources)
        sources[place.name] = Source(names, place.heads, place.offset, packed=place.packed)
        shapes[place.name] = shape_of(place)
    for name, factors in architecture.rope_factors(settings).items():
        values = np.asarray(factors, np.float32)
        sources[name], shapes[name] = Source(values=values), Shape(name, 1, len(values), 1)
    order = sorted(sources, key=_place)
    return {name: sources[name] for name in order}, [shapes[name] for name in order]


def _check_shapes(folder: Path, place: Tensor, stored: Mapping[str, str], weights: Weights) -> None:
    for source in place.sources:
        found = weights.tensors[stored[source]].shape if source in stored else None
        if found != place.shape:
            raise OperatorError(
                f"{folder}: {source if place.stacked else place.name} — got "
                f"{f'shape {found}' if found else 'no tensor'}; config.json requires shape {place.shape}",
                "config.json and the weights belong to different models",
            )


def _left_out(architecture: Architecture, weights: Weights) -> list[str]:
    """Sentences about the tensors that do not belong to the language model."""
    found = Counter(what for name in weights.tensors if (what := architecture.left_out_of(name)) is not None)
    return [
        f"{count} tensors of {what} are left out: the files contain the language model only"
        for what, count in found.items()
    ]


def _place(name: str) -> tuple[int, int, str]:
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return 0 if name in _FIRST else 2, 0, name
