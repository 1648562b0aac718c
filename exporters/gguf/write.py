"""A model folder becomes a GGUF file: header and names first, then each tensor a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.files import whole_path
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import padded
from engines.llama.quantizer import KernelQuantizer, Quantizer
from exporters.gguf.architectures import Architecture, architecture_of
from exporters.gguf.importance import Importance
from exporters.gguf.in_flight import InFlight, done, not_finite
from exporters.gguf.metadata import add_metadata
from exporters.gguf.quant_types import Choice, FilePlan, Shape, plan_file
from exporters.gguf.vocab import Vocabulary, add_vocabulary, read_vocabulary
from exporters.hf_model.model_config import head_width, kv_heads
from exporters.hf_model.model_folder import open_weights, read_config
from exporters.hf_model.rope import read_rope
from exporters.hf_model.tensor_files import Weights, row_chunks
from recipes import quantities
from recipes.problems import OperatorError, printable

_IGNORED = ("rotary_emb.inv_freq",)
_PLAIN = frozenset({"F32", "F16", "BF16"})
ROPE_FACTORS = "rope_freqs.weight"

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Source:
    """Where a GGUF tensor comes from: a tensor of the folder and the order of its rows, or fixed values."""

    name: str
    heads: int = 0
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Model:
    """A model folder, read and mapped, ready to be written in any file type."""

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
        """The type of every tensor in a file of this type, written with an importance matrix or without."""
        layers = int(self.config["num_hidden_layers"])
        return plan_file(
            file_type,
            self.shapes,
            layers=layers,
            gqa=int(self.config["num_attention_heads"]) // kv_heads(self.config),
            importance=importance,
            seventy_b=layers == 80 and self.architecture.name != "qwen3",
        )


def read_model(folder: Path, weights: Weights | None = None) -> Model:
    """Read everything but the weights themselves, and find a place for every tensor.

    Args:
        folder: the model's config and tokenizer, and its weights unless they are given.
        weights: its tensors, where no folder has them.

    Raises:
        OperatorError: a model, tensor, setting or tokenizer that cannot be written; the text names it.
    """
    config = read_config(folder)
    architecture = architecture_of(folder, config)
    weights = weights or open_weights(folder)
    sources = _map_tensors(folder, config, architecture, weights)
    shapes = []
    for name, source in sources.items():
        if source.values is not None:
            shapes.append(Shape(name, 1, len(source.values), 1))
        else:
            info = weights.tensors[source.name]
            shapes.append(Shape(name, info.rows, info.columns, len(info.shape)))
    return Model(folder, config, architecture, weights, read_vocabulary(folder, config), sources, shapes)


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
        importance: what the columns of each matrix matter; the plan was made with it.

    Raises:
        OperatorError: a value is not finite, or does not fit into the type.
    """
    with whole_path(path) as partial, closing(gguf.GGUFWriter(partial, model.architecture.name)) as writer:
        add_metadata(writer, model.config, name=path.stem, file_type=plan.file_type, parameters=model.parameters)
        add_vocabulary(writer, model.vocabulary)
        for choice in plan.choices:
            kind = TYPES[choice.type]
            shape = [choice.shape.rows, choice.shape.columns][2 - choice.shape.dimensions :]
            writer.add_tensor_info(
                choice.shape.name,
                shape,
                np.dtype(np.float32),
                choice.bytes,
                raw_dtype=gguf.GGMLQuantizationType(kind.id),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        rows = InFlight(file.write)
        for choice in plan.choices:
            columns = None if importance is None else importance.of(choice.shape.name, choice.shape.columns)
            _write_tensor(model, choice, rows, quantizer, progress, columns)
        rows.finish()


def _write_tensor(
    model: Model,
    choice: Choice,
    written: InFlight,
    quantizer: Quantizer | None,
    progress: Progress,
    importance: NDArray[np.float32] | None,
) -> None:
    width, count = TYPES[choice.type].row_bytes(choice.shape.columns), choice.shape.rows
    for start, stop in row_chunks(count, choice.shape.columns):
        rows = read_rows(model, choice.shape, start, stop)
        if isinstance(quantizer, KernelQuantizer) and choice.type not in _PLAIN:
            future = quantizer.submit_floats(choice.type, rows, importance)
        else:
            future = done(encode(choice, rows, quantizer, importance))
        padding = padded(choice.bytes) - choice.bytes if stop == count else 0
        written.add(future, choice.shape.name, (stop - start) * width, padding)
        progress(rows.size)


def read_rows(model: Model, shape: Shape, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor in the order of the GGUF file, [stop - start, columns].

    llama.cpp rotates neighbouring values, transformers the halves of a head, so each head's rows are interleaved:
    row 2 i + j of the file is row j * width / 2 + i of the folder.
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
    """Which row of the folder's tensor each row of a GGUF tensor is, int64 [rows]."""
    heads = model.sources[name].heads
    return _interleaved(heads, rows, 0, rows) if heads else np.arange(rows, dtype=np.int64)


def _interleaved(heads: int, rows: int, start: int, stop: int) -> NDArray[np.int64]:
    width = rows // heads
    index = np.arange(start, stop, dtype=np.int64)
    head, place = index // width, index % width
    return head * width + (place % 2) * (width // 2) + place // 2


def encode(
    choice: Choice, rows: NDArray[np.float32], quantizer: Quantizer | None, importance: NDArray[np.float32] | None
) -> NDArray[Any]:
    """Rows of float32 as a tensor of the chosen type holds them.

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
                f"{name} holds {quantities.number(float(np.abs(rows).max()))}, beyond what F16 can hold (65504)",
                "export BF16 or Q8_0 instead",
            )
        return halves
    if choice.type == "BF16":
        return _bfloat16(rows)
    assert quantizer is not None
    return quantizer.quantize(choice.type, rows, importance)


def _bfloat16(rows: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest, ties to even, on the bits of finite floats."""
    bits = np.ascontiguousarray(rows, "<f4").view("<u4")
    return ((bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)).astype("<u2")


def _map_tensors(
    folder: Path, config: dict[str, Any], architecture: Architecture, weights: Weights
) -> dict[str, Source]:
    """A GGUF name for every tensor, in the file's order: embedding, layers, norm, output."""
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture.name)
    layers = int(config["num_hidden_layers"])
    names = gguf.get_tensor_name_map(arch, layers)
    sources: dict[str, Source] = {}
    for tensor in weights.tensors:
        if tensor.endswith(_IGNORED) or (tensor == "lm_head.weight" and config["tie_word_embeddings"]):
            continue
        name = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if name is None or name in sources:
            raise OperatorError(f"{folder}: tensor {printable(tensor, 200)} has no place in a {architecture.name} file")
        sources[name] = Source(tensor, heads=_heads(name, config) if architecture.permuted else 0)
    factors = read_rope(config).frequency_divisors(head_width(config))
    if factors:
        sources[ROPE_FACTORS] = Source("", values=np.asarray(factors, np.float32))
    _check_complete(folder, config, architecture, weights, sources)
    return dict(sorted(sources.items(), key=lambda item: _place(item[0])))


def _heads(name: str, config: dict[str, Any]) -> int:
    """Heads of a tensor whose rows are in rotary order; 0 for the others."""
    if ".attn_q." in name:
        return int(config["num_attention_heads"])
    return kv_heads(config) if ".attn_k." in name else 0


def _place(name: str) -> tuple[int, int, str]:
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return {"token_embd.weight": 0, ROPE_FACTORS: 0}.get(name, 2), 0, name


def _check_complete(
    folder: Path,
    config: dict[str, Any],
    architecture: Architecture,
    weights: Weights,
    sources: dict[str, Source],
) -> None:
    """Every matrix that the config promises, in its shape, and no bias that the family cannot hold."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    queries, keys = head_width(config) * int(config["num_attention_heads"]), head_width(config) * kv_heads(config)
    wanted: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (int(config["vocab_size"]), hidden),
        "output_norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        wanted["output.weight"] = (int(config["vocab_size"]), hidden)
    per_layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    if architecture.head_norms:
        per_layer |= {"attn_q_norm": (head_width(config),), "attn_k_norm": (head_width(config),)}
    for layer in range(int(config["num_hidden_layers"])):
        wanted |= {f"blk.{layer}.{part}.weight": shape for part, shape in per_layer.items()}
    for name, shape in wanted.items():
        found = weights.tensors[sources[name].name].shape if name in sources else None
        if found != shape:
            raise OperatorError(
                f"{folder}: {name} — got {found or 'none'}; the config promises {shape}",
                "config and weights belong to different models",
            )
    for name, source in sources.items():
        if name.endswith(".bias") and not architecture.biases:
            raise OperatorError(
                f"{folder}: tensor {printable(source.name, 200)} has no place in a {architecture.name} file"
            )
        if name not in wanted and not name.endswith(".bias") and name != ROPE_FACTORS:
            raise OperatorError(
                f"{folder}: tensor {printable(source.name, 200)} is not one of the {architecture.name} family's"
            )
