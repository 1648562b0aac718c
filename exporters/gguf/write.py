"""Writes a model folder as a GGUF file: the header, then each tensor a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.files import atomic_file
from engines.llama.ggml_types import PLAIN_TYPES, TYPES
from engines.llama.quantizer import KernelQuantizer, Quantizer
from exporters.gguf.file_writer import Piece, Progress, new_tensor, not_finite, ready, write_file
from exporters.gguf.importance import Importance, weighted_chunks
from exporters.gguf.metadata import model_keys
from exporters.gguf.quant_types import Choice, FilePlan, Shape, plan_file
from exporters.gguf.vocab import Vocabulary, read_vocabulary, vocabulary_keys
from exporters.hf_model.architectures import Architecture, Tensor, architecture_of
from exporters.hf_model.model_config import head_width, kv_heads
from exporters.hf_model.model_folder import open_weights, read_config
from exporters.hf_model.rope import read_rope
from exporters.hf_model.tensor_files import Weights
from recipes import quantities
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, either, printable

_IGNORED = ("rotary_emb.inv_freq",)
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Source:
    """Where a GGUF tensor comes from: a tensor of the folder and the order of its rows, or fixed values."""

    name: str
    heads: int = 0
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Model:
    """A model folder whose tensors are mapped to GGUF names, for writing in any file type.

    `config` has the language model's settings.
    """

    folder: Path
    config: dict[str, Any]
    architecture: Architecture
    weights: Weights
    vocabulary: Vocabulary
    sources: dict[str, Source]
    shapes: list[Shape]

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
    settings = architecture.settings_of(config)
    sources = _map_tensors(folder, settings, architecture, weights)
    shapes = []
    for name, source in sources.items():
        if source.values is not None:
            shapes.append(Shape(name, 1, len(source.values), 1))
        else:
            info = weights.tensors[source.name]
            shapes.append(Shape(name, info.rows, info.columns, len(info.shape)))
    vocabulary = read_vocabulary(folder, settings)
    if vocabulary.model not in architecture.vocabularies:
        raise OperatorError(
            f"{folder}: tokenizer.ggml.model — got {vocabulary.model}; allowed for {architecture.name}: "
            f"{either(architecture.vocabularies)}"
        )
    return Model(folder, settings, architecture, weights, vocabulary, sources, shapes)


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
        name=path.stem,
        file_type_id=FILE_TYPES[plan.file_type].id,
        parameters=model.parameters,
    )
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
    head's rows are interleaved: row 2 i + j of the file is row j * width / 2 + i of the folder's tensor.
    """
    source = model.sources[shape.name]
    if source.values is not None:
        return source.values.reshape(1, -1)
    info = model.weights.tensors[source.name]
    if not source.heads:
        return model.weights.read_rows(source.name, start, stop)
    if len(info.shape) == 1:  # a bias: its values are the rows
        values = model.weights.read(source.name)
        return values[_interleaved(source.heads, len(values), 0, len(values))].reshape(1, -1)
    order = _interleaved(source.heads, info.rows, start, stop)
    low, high = int(order.min()), int(order.max()) + 1
    return model.weights.read_rows(source.name, low, high)[order - low]


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
) -> dict[str, Source]:
    """The source of every GGUF tensor, in the file's order: embedding, layers, norm, output.

    Raises:
        OperatorError: the family does not have a tensor of the folder, or the folder lacks one of the family's or has
            it in another shape.
    """
    places = architecture.tensors(settings)
    sources: dict[str, Source] = {}
    for name in weights.tensors:
        if name.endswith(_IGNORED) or (name == architecture.head and settings["tie_word_embeddings"]):
            continue
        if name not in places:
            raise OperatorError(f"{folder}: {architecture.name} models have no tensor {printable(name, 200)}")
        sources[places[name].name] = Source(name, heads=_heads(places[name]))
    for name, place in places.items():
        found = weights.tensors[name].shape if name in weights.tensors else None
        if found != place.shape and not (found is None and place.optional):
            raise OperatorError(
                f"{folder}: {place.name} — got {f'shape {found}' if found else 'no tensor'}; config.json requires "
                f"shape {place.shape}",
                "config.json and the weights belong to different models",
            )
    factors = read_rope(settings).frequency_divisors(head_width(settings))
    if factors:
        sources[ROPE_FACTORS] = Source("", values=np.asarray(factors, np.float32))
    return dict(sorted(sources.items(), key=lambda item: _place(item[0])))


def _heads(place: Tensor) -> int:
    """Heads of a tensor whose rows are in rotary order; 0 for the others."""
    return place.heads


def _place(name: str) -> tuple[int, int, str]:
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return {"token_embd.weight": 0, ROPE_FACTORS: 0}.get(name, 2), 0, name
