"""Chooses the type of each tensor in a GGUF file of a given file type, and computes the size of the tensors. Needs
neither torch nor numpy.

The rules are those of llama.cpp's `llama_tensor_get_type` for every family, so tensors get the types that
`llama-quantize` chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from engines.llama.ggml_types import TYPES
from exporters.gguf.tensor_kinds import EMBEDDINGS, OUTPUT, keeps_type, part_of
from exporters.hf_model.family import Architecture, Settings, Tensor
from recipes import quantities
from recipes.file_types import FILE_TYPES, FileType
from recipes.tensor_rules import Place, first_type


@dataclass(frozen=True)
class Shape:
    """A tensor by its GGUF name: `rows` x `columns`; a vector is one row.

    The matrices of experts are stored one after another: `rows` counts those of all, and `experts` the matrices.
    """

    name: str
    rows: int
    columns: int
    dimensions: int = 2
    experts: int = 1

    @property
    def layer(self) -> int | None:
        """The layer number of `blk.N.…`; None for other tensors."""
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "blk" else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its dimensions in the file's order, columns first."""
        if self.dimensions < 3:
            return (self.columns, self.rows)[: self.dimensions]
        return self.columns, self.rows // self.experts, self.experts


@dataclass(frozen=True)
class Choice:
    """The type of one tensor. `wanted` differs from `type` when the row width is not a multiple of the block."""

    shape: Shape
    type: str
    wanted: str

    @property
    def bytes(self) -> int:
        """Size of the tensor's data, without alignment."""
        return self.shape.rows * TYPES[self.type].row_bytes(self.shape.columns)


@dataclass(frozen=True)
class FilePlan:
    """Every tensor's type in one file."""

    file_type: str
    choices: list[Choice]
    weighted: bool = False
    """Whether the plan is for an importance matrix."""
    tensor_types: Mapping[str, str] = field(default_factory=dict)
    """The operator's own types by name, which replaced those of the file type."""
    label: str = ""

    @property
    def title(self) -> str:
        """What files and reports call it: the file type, unless its tensor types were chosen for a size."""
        return self.label or self.file_type

    @property
    def quantized(self) -> bool:
        """Whether its file type stores blocks."""
        return FILE_TYPES[self.file_type].quantized

    @property
    def bytes(self) -> int:
        """Size of all tensors, each aligned to 32 bytes, without the file's keys and vocabulary."""
        return sum(-(-choice.bytes // 32) * 32 for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Effective bits per weight over all tensors."""
        return (
            8 * sum(choice.bytes for choice in self.choices) / sum(c.shape.rows * c.shape.columns for c in self.choices)
        )

    @property
    def fallbacks(self) -> list[Choice]:
        """Tensors that get a fallback type."""
        return [choice for choice in self.choices if choice.type != choice.wanted]

    @property
    def needs_importance(self) -> list[Choice]:
        """Tensors whose type requires an importance matrix."""
        return [
            choice
            for choice in self.choices
            if TYPES[choice.type].importance == "required" and choice.shape.name not in (*EMBEDDINGS, OUTPUT)
        ]

    def fallback_note(self) -> str:
        """One sentence about tensors in other types than the file type's name promises; empty without any."""
        row = FILE_TYPES[self.file_type]
        if row.outside_experts and all(choice.type != row.base for choice in self.choices):
            return (
                f"{self.title}: llama.cpp stores only experts in {row.base}, and this model has none; the file has "
                f"{row.common} tensors"
            )
        if not self.fallbacks:
            return ""
        widths = sorted({choice.shape.columns for choice in self.fallbacks})
        pairs = sorted({f"{choice.wanted} → {choice.type}" for choice in self.fallbacks})
        return (
            f"{self.title}: {len(self.fallbacks)} of {len(self.choices)} tensors have widths "
            f"({', '.join(map(str, widths))}) that are not multiples of the block size and get another type "
            f"({', '.join(pairs)}); the file has {quantities.bits_per_weight(self.bits_per_weight)} bits per weight"
        )


def plan_file(
    file_type: str,
    shapes: list[Shape],
    *,
    layers: int,
    gqa: int = 1,
    importance: bool = False,
    seventy_b: bool = False,
    experts: int = 0,
) -> FilePlan:
    """Choose the type of every tensor.

    Args:
        file_type: a name of `FILE_TYPES`.
        shapes: all tensors, by GGUF name.
        layers: number of layers.
        gqa: query heads per key and value head; 0 for a model without attention.
        importance: whether there is an importance matrix.
        seventy_b: whether llama.cpp counts the model as 70B, whose value projections get more bits.
        experts: number of experts of each layer; 0 for a dense model.
    """
    row = FILE_TYPES[file_type]
    tied = not any(shape.name == OUTPUT for shape in shapes)
    # Only for the types of 1 and 2 bits, llama.cpp counts feed-forward parts also in mixtures of experts.
    counted = experts <= 1 or not row.seventy_b
    places = _places(shapes, Place(0, layers, gqa, importance, experts), counted=counted)
    choices = []
    for shape in shapes:
        wanted = _wanted(row, shape, places[shape.name], tied=tied, seventy_b=seventy_b)
        choices.append(Choice(shape, fitting(wanted, shape.columns), wanted))
    return FilePlan(file_type, choices, importance)


def _places(shapes: Iterable[Shape], common: Place, *, counted: bool) -> Mapping[str, Place]:
    """The place of every tensor, by name.

    llama.cpp counts the tensors of a part in the order of layers and names instead of reading the layer from the name.
    So value projections are counted only in the layers that have one. `counted`: likewise for other parts.
    """
    ordered = sorted(shapes, key=lambda shape: (-1 if shape.layer is None else shape.layer, shape.name))
    values = sum(part_of(shape.name) == "attn_v" for shape in ordered)
    seen: Counter[str] = Counter()
    places = {}
    for shape in ordered:
        part = part_of(shape.name)
        if part == "attn_v":
            place = replace(common, layer=seen[part], layers=values)
        else:
            place = replace(common, layer=seen[part] if counted or shape.layer is None else shape.layer)
        places[shape.name] = place
        seen[part] += shape.dimensions > 1 and not keeps_type(shape.name)
    return places


def _wanted(row: FileType, shape: Shape, place: Place, *, tied: bool, seventy_b: bool) -> str:
    """The type of a tensor before its width is checked. `tied`: the embedding is the output matrix."""
    if shape.dimensions < 2 or keeps_type(shape.name):
        return "F32"
    if not row.quantized:
        return row.base
    if shape.name == OUTPUT or (tied and shape.name in EMBEDDINGS):
        return "Q8_0" if shape.columns % TYPES[row.base].block else row.head
    usual = row.base if shape.dimensions > 2 else row.common
    if shape.name in EMBEDDINGS:
        return row.embedding or usual
    part = part_of(shape.name)
    chosen = first_type(row.parts.get(part, ()), place) or usual
    if seventy_b and row.seventy_b and part == "attn_v" and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"
    return _with_experts(row, part, place.experts) or chosen


def _with_experts(row: FileType, part: str, experts: int) -> str | None:
    """llama.cpp's exceptions for mixtures of experts, whose attention is small beside them; None if none applies."""
    least = not row.seventy_b  # the types of 1 and 2 bits
    if least and part == "attn_v" and experts >= 4:
        return "Q4_K"
    if experts != 8 or row.outside_experts:
        return None
    if part in ("attn_v", "attn_k"):
        return "Q4_K" if least else "Q8_0"
    if part == "attn_output":
        return "Q5_K" if least else row.outputs_of_eight or row.base
    return None


def is_quantized_matrix(shape: Shape) -> bool:
    """Whether llama.cpp quantizes a tensor: a matrix of weights that is neither a norm nor a router."""
    return shape.dimensions > 1 and not keeps_type(shape.name)


def fitting(wanted: str, columns: int) -> str:
    """`wanted`, or llama.cpp's fallback if the width is not a multiple of the block; F16 fits every width."""
    if columns % TYPES[wanted].block == 0:
        return wanted
    fallback = TYPES[wanted].fallback
    return fallback if columns % TYPES[fallback].block == 0 else "F16"


def model_shapes(architecture: Architecture, settings: Settings) -> list[Shape]:
    """Every tensor that a model with these settings must have, for estimates before the model exists.

    Args:
        architecture: its family.
        settings: from its config or a pretrain stage, with `vocab_size` and `tie_word_embeddings`.

    Raises:
        OperatorError: its rotary positions cannot be written.
    """
    tensors = [tensor for tensor in architecture.tensors(settings).values() if not tensor.optional]
    factors = architecture.rope_factors(settings).items()
    return [*map(shape_of, tensors), *(Shape(name, 1, len(values), 1) for name, values in factors)]


def shape_of(tensor: Tensor) -> Shape:
    """A tensor's shape in the file, whose experts' matrices or vectors are stacked."""
    if tensor.packed is not None:
        experts, places = tensor.shape[0], tensor.shape[-1] // tensor.packed.step
        if len(tensor.shape) == 2:
            return Shape(tensor.name, experts, places, 2)
        return Shape(tensor.name, experts * places, tensor.shape[1], 3, experts)
    count = len(tensor.sources)
    rows, columns = (1, *tensor.shape)[-2:]
    return Shape(tensor.name, rows * count, columns, len(tensor.shape) + tensor.stacked, count)
