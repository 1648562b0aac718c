"""Reads and validates a full-precision GGUF file and quantizes it; its other keys are copied unchanged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import PLAIN_TYPES, TYPES
from engines.llama.gguf_file import ARRAY, INT32, UINT32, GgufFile, Tensor, Value, read_gguf
from engines.llama.gguf_write import NewTensor, uint32_value
from engines.llama.quantizer import KernelQuantizer, Quantizer
from exporters.gguf.file_writer import Piece, Progress, ready, write_file
from exporters.gguf.importance import Importance, importance_keys, weighted_chunks
from exporters.gguf.metadata import QUANTIZATION_VERSION
from exporters.gguf.quant_types import Choice, FilePlan, Shape, plan_file
from exporters.gguf.write import encode
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError, printable, shown

_REPLACED = ("general.file_type", "general.quantization_version", "general.alignment")


_SEVENTY_B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
"""Layers of the models that llama.cpp counts as 70B, by family (LLM_TYPE_70B in its src/models)."""
_OTHER_RULES = ("falcon", "glm5-next")
"""Families for which llama.cpp's quantizer has rules of their own."""


@dataclass(frozen=True)
class GgufSource:
    """A file to quantize.

    Attributes:
        file: its keys and tensors.
        family: `general.architecture`.
        layers: number of layers.
        gqa: query heads per key and value head; 0 without attention.
        experts: number of experts of each layer; 0 for a dense model.
        shapes: its tensors.
    """

    file: GgufFile
    family: str
    layers: int
    gqa: int
    experts: int
    shapes: list[Shape]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(shape.rows * shape.columns for shape in self.shapes)

    def plan(self, file_type: str, *, importance: bool = False) -> FilePlan:
        """The type of every tensor; tensors that are not quantized keep their type."""
        plan = plan_file(
            file_type,
            self.shapes,
            layers=self.layers,
            gqa=self.gqa,
            importance=importance,
            seventy_b=_SEVENTY_B.get(self.family) == self.layers and not (self.family == "llama" and self.gqa == 1),
            experts=self.experts,
        )
        kept = [_kept(choice, self.file.tensors[choice.shape.name]) for choice in plan.choices]
        return FilePlan(file_type, kept, importance)

    def rows_of(self, shape: Shape, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a tensor, float32 [stop - start, columns]."""
        return rows_of(self.file, self.file.tensors[shape.name], start, stop)


def rows_of(file: GgufFile, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of a tensor in F32, F16 or BF16, float32 [stop - start, columns]."""
    data = file.read(tensor, start, stop - start)
    assert tensor.kind is not None
    if tensor.kind.name == "BF16":
        values = (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")
    else:
        values = np.frombuffer(data, "<f4" if tensor.kind.name == "F32" else "<f2").astype(np.float32)
    return np.ascontiguousarray(values.reshape(stop - start, tensor.columns))


def _kept(choice: Choice, tensor: Tensor) -> Choice:
    """Vectors, norms and routers keep their type in the source."""
    if choice.wanted != "F32" or tensor.kind is None:
        return choice
    return Choice(choice.shape, tensor.kind.name, tensor.kind.name)


def open_source(path: Path) -> GgufSource:
    """Read a GGUF file's header and check that the file can be quantized.

    Raises:
        OperatorError: the file is damaged, already quantized, or of an unsupported model family.
    """
    file = read_gguf(path)
    family = file.scalar("general.architecture")
    _check_family(path, family)
    for tensor in file.tensors.values():
        if tensor.kind is None or not tensor.kind.plain:
            kind = tensor.kind.name if tensor.kind else f"type {tensor.type_id}"
            raise OperatorError(
                f"{path}: tensor {printable(tensor.name, 200)} has type {kind}: the file is already quantized",
                "quantize from the F32, F16 or BF16 file: rounding twice loses more accuracy than once",
            )
    shapes = [_shape(path, tensor) for tensor in file.tensors.values()]
    if not any(shape.name == "token_embd.weight" for shape in shapes):
        raise OperatorError(f"{path} has no tensor token_embd.weight: it is not a language model")
    layers = _number(file, f"{family}.block_count", 1, 100_000)
    experts = _number(file, f"{family}.expert_count", 0, 100_000, default=0)
    heads = _number(file, f"{family}.attention.head_count", 0, 2**20, default=0)
    kv_heads = _number(file, f"{family}.attention.head_count_kv", 0, heads, default=heads)
    return GgufSource(file, family, layers, heads // kv_heads if kv_heads else 0, experts, shapes)


def _check_family(path: Path, family: object) -> None:
    """Refuse a family that llama.cpp does not have, or whose rules of quantizing are not those of the others."""
    if family in _OTHER_RULES:
        raise OperatorError(
            f"{path}: general.architecture — got {family}, for which llama.cpp has rules of its own",
            "quantize it with llama.cpp's own llama-quantize",
        )
    if family not in gguf.MODEL_ARCH_NAMES.values():
        raise OperatorError(
            f"{path}: general.architecture — got {printable(str(family), 60)}; allowed a family of the gguf package, "
            "such as llama or gemma3",
            "a newer gguf package may have it; llama.cpp's own llama-quantize needs none",
        )


def _number(file: GgufFile, key: str, least: int, most: int, *, default: int | None = None) -> int:
    """A whole number; of a list with one for each layer, the first, which is the one that llama.cpp's rules use."""
    given = file.keys.get(key)
    value = default if given is None else _first(given)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise OperatorError(
            f"{file.path}: {key} — got {shown(value)}; allowed {least} to {most}"
            if given is not None
            else f"{file.path}: {key} — got nothing; allowed a whole number from {least} to {most}"
        )
    return value


def _first(value: Value) -> object:
    if value.kind != ARRAY or len(value.raw) < 16:
        return value.scalar
    item, count = struct.unpack_from("<IQ", value.raw)
    return struct.unpack_from("<i", value.raw, 12)[0] if item in (INT32, UINT32) and count else None


def _shape(path: Path, tensor: Tensor) -> Shape:
    if any(size != 1 for size in tensor.dimensions[3:]):
        raise OperatorError(
            f"{path}: tensor {printable(tensor.name, 200)} has {len(tensor.dimensions)} dimensions; allowed 1 to 3"
        )
    parts = tensor.name.split(".")
    if parts[0] == "blk" and not (len(parts) > 2 and parts[1].isdecimal()):
        raise OperatorError(f"{path}: tensor {printable(tensor.name, 200)} has no layer number")
    experts = tensor.dimensions[2] if len(tensor.dimensions) > 2 else 1
    dimensions = 3 if experts > 1 else 2 if tensor.matrix else 1
    return Shape(tensor.name, tensor.rows, tensor.columns, dimensions, experts)


def new_keys(
    source: GgufSource, file_type: str, importance: Importance | None, importance_file: str
) -> dict[str, Value]:
    """The source's keys with the new file type, and llama.cpp's keys about the importance matrix."""
    keys = {
        name: value
        for name, value in source.file.keys.items()
        if name not in _REPLACED and not name.startswith(("quantize.imatrix.", "split."))
    }
    keys["general.quantization_version"] = uint32_value(QUANTIZATION_VERSION)
    keys["general.file_type"] = uint32_value(FILE_TYPES[file_type].id)
    if importance is not None:
        keys |= importance_keys(importance, importance_file)
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
    """Write the complete quantized file to an open file. The caller syncs and renames it.

    Raises:
        OperatorError: a value is not finite or outside the type's range; names the tensor.
    """
    tensors = [
        (
            NewTensor(c.shape.name, source.file.tensors[c.shape.name].dimensions, TYPES[c.type].id, c.bytes),
            _pieces(source, c, quantizer, None if importance is None else importance.of(c.shape)),
        )
        for c in plan.choices
    ]
    write_file(file, new_keys(source, plan.file_type, importance, importance_file), tensors, progress)


def _pieces(
    source: GgufSource, choice: Choice, quantizer: Quantizer | None, importance: NDArray[np.float32] | None
) -> Iterator[Piece]:
    """A tensor in its new type, a few rows at a time; kernels quantize them while the next are read.

    `importance`: float32 [experts, columns], or None.
    """
    tensor, columns = source.file.tensors[choice.shape.name], choice.shape.columns
    assert tensor.kind is not None
    given, made = tensor.kind.row_bytes(columns), TYPES[choice.type].row_bytes(columns)
    for start, stop, weights in weighted_chunks(choice.shape, importance):
        values = (stop - start) * columns
        if isinstance(quantizer, KernelQuantizer) and choice.type not in PLAIN_TYPES:

            def fill(view: memoryview, start: int = start) -> None:
                source.file.read_into(tensor, start, view)

            future = quantizer.submit(choice.type, tensor.kind.name, (stop - start, given), fill, weights)
            yield Piece(future, (stop - start) * made, values)
        else:
            yield ready(encode(choice, source.rows_of(choice.shape, start, stop), quantizer, weights), values)
