"""A GGUF file of full precision as the source of quantized ones: read without trust, its keys kept as they are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import (
    GgufFile,
    NewTensor,
    Tensor,
    Value,
    padded,
    read_gguf,
    text_value,
    uint32_value,
    write_header,
)
from engines.llama.quantizer import KernelQuantizer, Quantizer
from exporters.gguf.importance import Importance
from exporters.gguf.in_flight import InFlight, done
from exporters.gguf.quant_types import FILE_TYPE_IDS, Choice, FilePlan, Shape, plan_file
from exporters.gguf.write import encode
from exporters.hf_model.tensor_files import row_chunks
from recipes.problems import OperatorError, printable

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Dense families for which the table of types is llama.cpp's."""

PLAIN = ("F32", "F16", "BF16")
QUANTIZATION_VERSION = 2
_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class GgufSource:
    """A file to quantize. `gqa` is query heads per key and value head."""

    file: GgufFile
    architecture: str
    layers: int
    gqa: int
    shapes: list[Shape]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(shape.rows * shape.columns for shape in self.shapes)

    def plan(self, file_type: str, *, importance: bool = False) -> FilePlan:
        """The type of every tensor; what is not quantized keeps the source's."""
        plan = plan_file(
            file_type,
            self.shapes,
            layers=self.layers,
            gqa=self.gqa,
            importance=importance,
            seventy_b=self.layers == 80 and self.architecture != "qwen3",
        )
        kept = [_kept(choice, self.file.tensors[choice.shape.name]) for choice in plan.choices]
        return FilePlan(file_type, kept)

    def rows_of(self, shape: Shape, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a tensor as float32, [stop - start, columns]."""
        tensor = self.file.tensors[shape.name]
        data = self.file.read(tensor, start, stop - start)
        assert tensor.kind is not None
        if tensor.kind.name == "BF16":
            values = (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
        else:
            values = np.frombuffer(data, "<f4" if tensor.kind.name == "F32" else "<f2").astype(np.float32)
        return np.ascontiguousarray(values.reshape(stop - start, tensor.columns))


def _kept(choice: Choice, tensor: Tensor) -> Choice:
    """Vectors and norms stay as they are in the source."""
    if choice.wanted != "F32" or tensor.kind is None:
        return choice
    return Choice(choice.shape, tensor.kind.name, tensor.kind.name)


def open_source(path: Path) -> GgufSource:
    """Read a GGUF file's header and see whether it can be quantized.

    Raises:
        OperatorError: it is damaged, already quantized, split over files, or of a kind whose rules are not known here.
    """
    file = read_gguf(path)
    architecture = file.scalar("general.architecture")
    if architecture not in ARCHITECTURES:
        raise OperatorError(
            f"{path}: general.architecture — got {printable(str(architecture))}; allowed {', '.join(ARCHITECTURES)}",
            "quantize other families with llama.cpp's own llama-quantize",
        )
    if file.scalar("split.count", 0) not in (0, 1):
        raise OperatorError(f"{path}: one of several files of a split model", "join them: llama-gguf-split --merge")
    if file.scalar(f"{architecture}.expert_count", 0):
        raise OperatorError(f"{path}: a mixture of experts", "quantize it with llama.cpp's own llama-quantize")
    for tensor in file.tensors.values():
        if tensor.kind is None or tensor.kind.name not in PLAIN:
            kind = tensor.kind.name if tensor.kind else f"type {tensor.type_id}"
            raise OperatorError(
                f"{path}: tensor {printable(tensor.name, 200)} is {kind}: the file is already quantized",
                "quantize from the F32, F16 or BF16 file: rounding twice costs more than either",
            )
    layers = _number(file, f"{architecture}.block_count")
    heads = _number(file, f"{architecture}.attention.head_count")
    kv_heads = file.scalar(f"{architecture}.attention.head_count_kv", heads)
    if not isinstance(kv_heads, int) or not 0 < kv_heads <= heads:
        raise OperatorError(f"{path}: {architecture}.attention.head_count_kv — got {kv_heads!r}; allowed 1 to {heads}")
    shapes = [_shape(path, tensor) for tensor in file.tensors.values()]
    if not any(shape.name == "token_embd.weight" for shape in shapes):
        raise OperatorError(f"{path}: there is no token_embd.weight: not a language model")
    return GgufSource(file, architecture, layers, heads // kv_heads, shapes)


def _number(file: GgufFile, key: str) -> int:
    value = file.scalar(key)
    if not isinstance(value, int) or not 0 < value <= 100_000:
        raise OperatorError(f"{file.path}: {key} — got {value!r}; allowed a whole number above 0")
    return value


def _shape(path: Path, tensor: Tensor) -> Shape:
    if any(size != 1 for size in tensor.dimensions[2:]):
        raise OperatorError(f"{path}: tensor {printable(tensor.name, 200)} has {len(tensor.dimensions)} dimensions")
    parts = tensor.name.split(".")
    if parts[0] == "blk" and not (len(parts) > 2 and parts[1].isdecimal()):
        raise OperatorError(f"{path}: tensor {printable(tensor.name, 200)} belongs to no layer")
    return Shape(tensor.name, tensor.rows, tensor.columns, 2 if tensor.matrix else 1)


def new_keys(
    source: GgufSource, file_type: str, importance: Importance | None, importance_file: str
) -> dict[str, Value]:
    """The source's keys, with the file type changed and what llama.cpp notes about an importance matrix."""
    keys = {
        name: value
        for name, value in source.file.keys.items()
        if name not in _REPLACED and not name.startswith("quantize.imatrix.")
    }
    keys["general.quantization_version"] = uint32_value(QUANTIZATION_VERSION)
    keys["general.file_type"] = uint32_value(FILE_TYPE_IDS[file_type])
    if importance is not None:
        keys["quantize.imatrix.file"] = text_value(importance_file)
        keys["quantize.imatrix.dataset"] = text_value(importance.source)
        keys["quantize.imatrix.entries_count"] = uint32_value(len(importance.values))
        keys["quantize.imatrix.chunks_count"] = uint32_value(importance.windows[0])
    return keys


def write_quantized(
    source: GgufSource,
    plan: FilePlan,
    file: BinaryIO,
    quantizer: Quantizer | None,
    progress: Progress,
    importance: Importance | None = None,
    importance_file: str = "",
) -> None:
    """Write a whole quantized file to an open one; making it durable and giving it its name is the caller's.

    Raises:
        OperatorError: a value is not finite or does not fit; names the tensor.
    """
    tensors = [
        NewTensor(c.shape.name, source.file.tensors[c.shape.name].dimensions, TYPES[c.type].id, c.bytes)
        for c in plan.choices
    ]
    write_header(file, new_keys(source, plan.file_type, importance, importance_file), tensors)
    rows = InFlight(file.write)
    for choice in plan.choices:
        weights = None if importance is None else importance.of(choice.shape.name, choice.shape.columns)
        width, count = TYPES[choice.type].row_bytes(choice.shape.columns), choice.shape.rows
        for start, stop in row_chunks(count, choice.shape.columns):
            padding = padded(choice.bytes) - choice.bytes if stop == count else 0
            future = _rows(source, choice, start, stop, quantizer, weights)
            rows.add(future, choice.shape.name, (stop - start) * width, padding)
            progress((stop - start) * choice.shape.columns)
    rows.finish()


def _rows(
    source: GgufSource,
    choice: Choice,
    start: int,
    stop: int,
    quantizer: Quantizer | None,
    weights: NDArray[np.float32] | None,
) -> Future[memoryview]:
    """Some rows in their new type; kernels work on them while the caller goes on."""
    tensor = source.file.tensors[choice.shape.name]
    assert tensor.kind is not None
    if isinstance(quantizer, KernelQuantizer) and choice.type not in PLAIN:
        width = tensor.kind.row_bytes(tensor.columns)

        def fill(view: memoryview) -> None:
            source.file.read_into(tensor, start, view)

        return quantizer.submit(choice.type, tensor.kind.name, (stop - start, width), fill, weights)
    return done(encode(choice, source.rows_of(choice.shape, start, stop), quantizer, weights))
