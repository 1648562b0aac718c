"""Which tensor type each tensor gets in a GGUF file of a given type, and what that comes to. Needs neither torch nor numpy.

The rules are those of llama.cpp's `llama_tensor_get_type` for dense Llama-type models, so that a file has the types that
`llama-quantize` would give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.llama.ggml_types import TYPES

FILE_TYPE_IDS = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32}
"""`general.file_type` by file type (enum llama_ftype)."""

DEFAULT_TYPES = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    "Q8_0": "Q8_0",
    "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K",
    "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K",
}
"""The type that most matrices of a file get."""

QUANTIZED = frozenset(FILE_TYPE_IDS) - {"F32", "F16", "BF16"}
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
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

    def fallback_note(self) -> str:
        """One sentence on the fallbacks, or nothing."""
        if not self.fallbacks:
            return ""
        widths = sorted({choice.shape.columns for choice in self.fallbacks})
        pairs = sorted({f"{choice.wanted} → {choice.type}" for choice in self.fallbacks})
        return (
            f"{self.file_type}: {len(self.fallbacks)} of {len(self.choices)} tensors have widths ({', '.join(map(str, widths))}) that do not divide into"
            f" blocks and are stored as another type ({', '.join(pairs)}); the file has {self.bits_per_weight:.2f} bits per weight"
        )


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def plan_file(file_type: str, shapes: list[Shape], *, layers: int, seventy_b: bool = False) -> FilePlan:
    """Choose the type of every tensor.

    Args:
        file_type: a key of `FILE_TYPE_IDS`.
        shapes: all tensors, by GGUF name.
        layers: number of layers.
        seventy_b: llama.cpp's class of 80-layer Llama and Qwen2 models, whose value projections get more bits.
    """
    tied = all(shape.name != _OUTPUT for shape in shapes)
    choices = []
    for shape in shapes:
        wanted = _wanted(file_type, shape, layers=layers, tied=tied, seventy_b=seventy_b)
        choices.append(Choice(shape, _fitting(wanted, shape.columns), wanted))
    return FilePlan(file_type, choices)


def _wanted(file_type: str, shape: Shape, *, layers: int, tied: bool, seventy_b: bool) -> str:
    default = DEFAULT_TYPES[file_type]
    if shape.dimensions < 2 or shape.name.endswith("_norm.weight") or not shape.name.endswith(".weight"):
        return "F32"
    if file_type not in QUANTIZED:
        return default
    if shape.name == _OUTPUT or (tied and shape.name == _EMBEDDING):
        if shape.columns % TYPES[default].block:
            return "Q8_0"
        return "Q8_0" if default == "Q8_0" else "Q6_K"
    if shape.layer is not None and file_type in ("Q5_K_M", "Q4_K_M", "Q4_K_S"):
        return _layer_type(file_type, shape, layers, seventy_b)
    return default


def _layer_type(file_type: str, shape: Shape, layers: int, seventy_b: bool) -> str:
    """The K mixtures: some value and down projections get more bits."""
    default = DEFAULT_TYPES[file_type]
    assert shape.layer is not None
    part = shape.name.split(".")[2]
    if part == "attn_v":
        chosen = default
        if file_type == "Q4_K_S":
            chosen = "Q5_K" if shape.layer < 4 else default
        elif more_bits(shape.layer, layers):
            chosen = "Q6_K"
        return "Q5_K" if seventy_b and chosen == "Q4_K" else chosen
    if part == "ffn_down":
        if file_type == "Q4_K_S":
            return "Q5_K" if shape.layer < layers // 8 else default
        return "Q6_K" if more_bits(shape.layer, layers) else default
    return default


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
