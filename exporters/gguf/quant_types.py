"""Which tensor type each tensor gets in a GGUF file of a given type, and what that comes to. Needs neither torch nor numpy.

The rules are those of llama.cpp's `llama_tensor_get_type` for dense Llama-type models, so that a file has the types that
`llama-quantize` would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.llama.ggml_types import TYPES
from recipes import quantities

FILE_TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_0": 8, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ4_NL": 25, "IQ3_S": 26, "IQ4_XS": 30,
    "BF16": 32, "TQ1_0": 36, "TQ2_0": 37,
}  # fmt: skip
"""`general.file_type` by file type (enum llama_ftype)."""

DEFAULT_TYPES = {name: name.removesuffix("_M").removesuffix("_S") if "_K_" in name else name for name in FILE_TYPE_IDS}
"""The type that most matrices of a file get."""

QUANTIZED = frozenset(FILE_TYPE_IDS) - {"F32", "F16", "BF16"}
TERNARY = frozenset({"TQ1_0", "TQ2_0"})
"""File types that hold three values per block: for models trained with ternary weights."""
IMPORTANCE_NEEDED = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
"""Tensor types that llama.cpp writes only with an importance matrix, except for embeddings and heads."""
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FALLBACKS |= dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL")
_FALLBACKS |= dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0")
_LOW_HEADS = frozenset({"IQ2_XXS", "IQ2_XS", "IQ3_XXS"})
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Shape:
    """A tensor by its GGUF name: `rows` x `columns`; a vector is one row."""

    name: str
    rows: int
    columns: int
    dimensions: int = 2

    @property
    def layer(self) -> int | None:
        """Its layer, for `blk.N.…`."""
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "blk" else None


@dataclass(frozen=True)
class Choice:
    """The type of one tensor. `wanted` differs from `type` when the row's width does not divide into blocks."""

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
    """Whether it was made for an importance matrix."""

    @property
    def bytes(self) -> int:
        """Size of all tensors, each aligned to 32 bytes; the file adds its keys and vocabulary."""
        return sum(-(-choice.bytes // 32) * 32 for choice in self.choices)

    @property
    def bits_per_weight(self) -> float:
        """Effective bits per weight over all tensors."""
        return (
            8 * sum(choice.bytes for choice in self.choices) / sum(c.shape.rows * c.shape.columns for c in self.choices)
        )

    @property
    def fallbacks(self) -> list[Choice]:
        """Tensors that did not get the type they should have."""
        return [choice for choice in self.choices if choice.type != choice.wanted]

    @property
    def needs_importance(self) -> list[Choice]:
        """Tensors that are written with an importance matrix or not at all."""
        return [c for c in self.choices if c.type in IMPORTANCE_NEEDED and c.shape.name not in (_EMBEDDING, _OUTPUT)]

    def fallback_note(self) -> str:
        """One sentence on the fallbacks, or nothing."""
        if not self.fallbacks:
            return ""
        widths = sorted({choice.shape.columns for choice in self.fallbacks})
        pairs = sorted({f"{choice.wanted} → {choice.type}" for choice in self.fallbacks})
        return (
            f"{self.file_type}: {len(self.fallbacks)} of {len(self.choices)} tensors have widths ({', '.join(map(str, widths))}) that do not divide into"
            f" blocks and are stored as another type ({', '.join(pairs)}); the file has {quantities.bits_per_weight(self.bits_per_weight)} bits per weight"
        )


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


@dataclass(frozen=True)
class Mixture:
    """What decides a tensor's type besides its name.

    Attributes:
        file_type: a key of `FILE_TYPE_IDS`.
        layers: number of layers.
        gqa: query heads per key and value head.
        importance: whether there is an importance matrix.
        tied: whether the embedding is the head.
        seventy_b: llama.cpp's class of 80-layer Llama and Qwen2 models, whose value projections get more bits.
    """

    file_type: str
    layers: int
    gqa: int = 1
    importance: bool = False
    tied: bool = False
    seventy_b: bool = False


def plan_file(
    file_type: str,
    shapes: list[Shape],
    *,
    layers: int,
    gqa: int = 1,
    importance: bool = False,
    seventy_b: bool = False,
) -> FilePlan:
    """Choose the type of every tensor: `shapes` are all of them, by GGUF name; the rest as in `Mixture`."""
    tied = all(shape.name != _OUTPUT for shape in shapes)
    mixture = Mixture(file_type, layers, gqa, importance, tied, seventy_b)
    choices = []
    for shape in shapes:
        wanted = _wanted(mixture, shape)
        choices.append(Choice(shape, _fitting(wanted, shape.columns), wanted))
    return FilePlan(file_type, choices, importance)


def _wanted(mixture: Mixture, shape: Shape) -> str:
    default = DEFAULT_TYPES[mixture.file_type]
    if shape.dimensions < 2 or shape.name.endswith("_norm.weight") or not shape.name.endswith(".weight"):
        return "F32"
    if mixture.file_type not in QUANTIZED:
        return default
    if shape.name == _OUTPUT or (mixture.tied and shape.name == _EMBEDDING):
        if shape.columns % TYPES[default].block or default == "Q8_0":
            return "Q8_0"
        return "Q5_K" if mixture.file_type in _LOW_HEADS else "Q6_K"
    if shape.name == _EMBEDDING:
        return _EMBEDDINGS.get(mixture.file_type, default)
    if shape.layer is None:
        return default
    choose = _PARTS.get(shape.name.split(".")[2])
    return (choose(mixture, shape.layer) if choose else None) or default


_EMBEDDINGS = {"IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K"}


def _value_type(mixture: Mixture, layer: int) -> str | None:
    """Value projections: small, and the last that should lose bits."""
    chosen = _value_types(mixture, layer)
    four_bits = (chosen or DEFAULT_TYPES[mixture.file_type]) in ("Q3_K", "Q4_K")
    return "Q5_K" if mixture.seventy_b and four_bits and mixture.file_type not in ("IQ2_XXS", "IQ2_XS") else chosen


def _value_types(mixture: Mixture, layer: int) -> str | None:
    grouped = mixture.gqa >= 4
    match mixture.file_type:
        case "IQ2_XXS" | "IQ2_XS":
            return "Q4_K" if grouped else "Q2_K"
        case "Q2_K":
            return "Q4_K" if grouped else "Q3_K"
        case "IQ3_XXS":
            return "Q4_K" if grouped else None if mixture.importance else "IQ3_S"
        case "IQ3_S":
            return "Q4_K" if grouped else None
        case "Q3_K_M":
            return "Q5_K" if layer < 2 else "Q4_K"
        case "IQ4_NL" | "IQ4_XS":
            return "Q5_K" if grouped else None
        case "Q4_K_M" | "Q5_K_M":
            return "Q6_K" if more_bits(layer, mixture.layers) else None
        case "Q4_K_S":
            return "Q5_K" if layer < 4 else None
        case _:
            return None


def _down_type(mixture: Mixture, layer: int) -> str | None:
    """Down projections."""
    early = layer < mixture.layers // 8
    match mixture.file_type:
        case "IQ2_XXS" | "IQ2_XS":
            return "Q2_K" if early else None
        case "Q2_K":
            return "Q3_K"
        case "IQ3_XXS":
            return None if mixture.importance else "Q4_K" if early else "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if layer < mixture.layers // 16 else "Q4_K"
        case "Q4_K_M" | "Q5_K_M":
            return "Q6_K" if more_bits(layer, mixture.layers) else None
        case "IQ4_NL" | "IQ4_XS":
            return "Q5_K" if early and not mixture.importance else None
        case "Q4_K_S":
            return "Q5_K" if early else None
        case "Q4_0" | "Q5_0":
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[mixture.file_type] if early and mixture.importance else None
        case _:
            return None


def _attention_output_type(mixture: Mixture, _layer: int) -> str | None:
    return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K"}.get(mixture.file_type)


def _query_or_key_type(mixture: Mixture, _layer: int) -> str | None:
    return "IQ2_S" if mixture.file_type == "IQ3_XXS" else None


_PARTS: dict[str, Callable[[Mixture, int], str | None]] = {
    "attn_v": _value_type,
    "ffn_down": _down_type,
    "attn_output": _attention_output_type,
    "attn_q": _query_or_key_type,
    "attn_k": _query_or_key_type,
}
"""The parts of a layer that a mixture treats in their own way; None means the file's default type."""


def _fitting(wanted: str, columns: int) -> str:
    """llama.cpp's fallback for widths that are not multiples of the block; F16 fits every width."""
    if columns % TYPES[wanted].block == 0:
        return wanted
    fallback = _FALLBACKS.get(wanted, "F16")
    return fallback if columns % TYPES[fallback].block == 0 else "F16"


def llama_shapes(config: Mapping[str, Any], vocab_size: int) -> list[Shape]:
    """Every tensor of a Llama-type model from the fields of its config or of a pretrain stage: for estimates before it exists.

    Args:
        config: hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
            tie_word_embeddings and, optionally, head_dim.
        vocab_size: rows of the embedding.
    """
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    width = int(config.get("head_dim") or hidden // heads)
    shapes = [Shape(_EMBEDDING, vocab_size, hidden), Shape("output_norm.weight", 1, hidden, 1)]
    if not config["tie_word_embeddings"]:
        shapes.append(Shape(_OUTPUT, vocab_size, hidden))
    parts = {
        "attn_q": (heads * width, hidden),
        "attn_k": (kv_heads * width, hidden),
        "attn_v": (kv_heads * width, hidden),
        "attn_output": (hidden, heads * width),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    for layer in range(int(config["num_hidden_layers"])):
        shapes += [Shape(f"blk.{layer}.{name}.weight", rows, columns) for name, (rows, columns) in parts.items()]
        shapes += [Shape(f"blk.{layer}.{name}.weight", 1, hidden, 1) for name in ("attn_norm", "ffn_norm")]
    return shapes
