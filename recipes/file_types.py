"""The GGUF file types that an export can write, one row each. No other module lists them.

The recipe's choices and checks, REFERENCE.md, the writers, the estimates before a launch, the audit and the comparison
read these rows. `engines.llama.ggml_types` has the layout and the quantization of each tensor type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from recipes.quantities import exact
from recipes.tensor_rules import (
    Rule,
    eight_experts,
    first_eighth,
    first_four,
    first_sixteenth,
    first_two,
    grouped,
    middle,
    more_bits,
    unweighted,
    use,
    weighted,
)

ImportanceUse = Literal["ignored", "used", "required"]

ARITHMETIC_LIMIT = 1e-4
"""Mean KL, nats, that llama.cpp may differ by from a file's own weights when its kernels round activations to 8 bits,
as they do for every quantized type. Random and barely trained models stay below it; bench/behaviour.md has the
table."""


@dataclass(frozen=True)
class FileType:
    """One file type.

    Attributes:
        name: as recipes, file names and llama-quantize spell it.
        id: `general.file_type`, the number of llama.cpp's enum llama_ftype.
        base: the tensor type of most matrices.
        bits_per_weight: of the base type; a file's own figure is a little higher.
        importance: how a file of the type uses an importance matrix: ignored, used if there is one, or required.
        ternary: for models trained with ternary weights only.
        head: the tensor type of the output matrix, or of the embedding if both are tied.
        embedding: the tensor type of an untied embedding; the base type by default.
        outside_experts: the tensor type of all matrices but those of experts; the base type by default.
        parts: by the tensor's name within a layer (`attn_v`, `ffn_down`, …), the rules for its type; the base type if
            no rule applies.
        outputs_of_eight: the tensor type of attention outputs in models of eight experts; the base type by default.
        seventy_b: whether value projections of 80-layer models (llama.cpp's class 70B) get Q5_K instead of Q3_K or
            Q4_K.
        usual_kl: mean KL, nats, of Llama 3 8B in this type on Wikitext-2, from llama.cpp's tools/perplexity/README.md
            (IQ types with its importance matrix, the others without); smaller and shorter-trained models lose less.
            None if no figure is published.
        arithmetic_limit: mean KL, nats, that llama.cpp's arithmetic may cost in every model; a model that amplifies
            rounding more has a wider limit of its own (`exporters.proof.behaviour`).
        keeps_top1: whether the most likely token may change only where the model's two best are tied.
    """

    name: str
    id: int
    base: str
    bits_per_weight: float
    importance: ImportanceUse = "used"
    ternary: bool = False
    head: str = "Q6_K"
    embedding: str | None = None
    outside_experts: str | None = None
    parts: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    outputs_of_eight: str | None = None
    seventy_b: bool = True
    usual_kl: float | None = None
    arithmetic_limit: float = ARITHMETIC_LIMIT
    keeps_top1: bool = False

    @property
    def quantized(self) -> bool:
        """Whether its base type stores blocks: all but F32, F16 and BF16."""
        return self.bits_per_weight < 16

    @property
    def common(self) -> str:
        """The tensor type of most matrices of a model without experts."""
        return self.outside_experts or self.base


_TWO_BIT = {
    "attn_v": (use("Q4_K", grouped), use("Q2_K")),
    "ffn_down": (use("Q2_K", first_eighth),),
}
_TWO_BIT_MORE = {
    "attn_v": (use("Q4_K", grouped), use("IQ3_S")),
    "attn_output": (use("IQ3_S"),),
    "ffn_down": (use("IQ3_S", first_eighth),),
}
_ONE_BIT = {**_TWO_BIT, "attn_output": (use("IQ2_XXS"),)}

_ROWS = (
    FileType("F32", 0, "F32", 32, "ignored", head="F32", arithmetic_limit=1e-6, keeps_top1=True),
    FileType("F16", 1, "F16", 16, "ignored", head="F16", arithmetic_limit=1e-6, keeps_top1=True),
    FileType("BF16", 32, "BF16", 16, "ignored", head="BF16", arithmetic_limit=1e-5),
    FileType("Q8_0", 7, "Q8_0", 8.5, "ignored", head="Q8_0", usual_kl=0.001355),
    FileType("Q6_K", 18, "Q6_K", 6.5625, usual_kl=0.005452),
    FileType(
        "Q5_K_M",
        17,
        "Q5_K",
        5.5,
        parts={"attn_v": (use("Q6_K", more_bits),), "ffn_down": (use("Q6_K", more_bits),)},
        usual_kl=0.010762,
    ),
    FileType("Q5_K_S", 16, "Q5_K", 5.5, usual_kl=0.016595),
    FileType("Q5_0", 8, "Q5_0", 5.5, parts={"ffn_down": (use("Q5_1", first_eighth, weighted),)}, usual_kl=0.022239),
    FileType(
        "Q4_K_M",
        15,
        "Q4_K",
        4.5,
        parts={"attn_v": (use("Q6_K", more_bits),), "ffn_down": (use("Q6_K", more_bits),)},
        outputs_of_eight="Q5_K",
        usual_kl=0.031273,
    ),
    FileType(
        "Q4_K_S",
        14,
        "Q4_K",
        4.5,
        parts={"attn_v": (use("Q5_K", first_four),), "ffn_down": (use("Q5_K", first_eighth),)},
        outputs_of_eight="Q5_K",
        usual_kl=0.043136,
    ),
    FileType(
        "IQ4_NL",
        25,
        "IQ4_NL",
        4.5,
        parts={"attn_v": (use("Q5_K", grouped),), "ffn_down": (use("Q5_K", first_eighth, unweighted),)},
        outputs_of_eight="Q5_K",
        usual_kl=0.035742,
    ),
    FileType(
        "IQ4_XS",
        30,
        "IQ4_XS",
        4.25,
        parts={"attn_v": (use("Q5_K", grouped),), "ffn_down": (use("Q5_K", first_eighth, unweighted),)},
        outputs_of_eight="Q5_K",
        usual_kl=0.036334,
    ),
    FileType("Q4_1", 3, "Q4_1", 5.0, usual_kl=0.071683),
    FileType("Q4_0", 2, "Q4_0", 4.5, parts={"ffn_down": (use("Q4_1", first_eighth, weighted),)}, usual_kl=0.071940),
    FileType(
        "Q3_K_L",
        13,
        "Q3_K",
        3.4375,
        parts={"attn_v": (use("Q5_K"),), "attn_output": (use("Q5_K"),), "ffn_down": (use("Q5_K"),)},
        usual_kl=0.087176,
    ),
    FileType(
        "Q3_K_M",
        12,
        "Q3_K",
        3.4375,
        parts={
            "attn_v": (use("Q5_K", first_two), use("Q4_K")),
            "attn_output": (use("Q4_K"),),
            "ffn_down": (use("Q5_K", first_sixteenth), use("Q4_K")),
        },
        outputs_of_eight="Q5_K",
        usual_kl=0.101913,
    ),
    FileType(
        "IQ3_M",
        27,
        "IQ3_S",
        3.4375,
        parts={
            "attn_v": (use("Q4_K"),),
            "attn_output": (use("Q4_K"),),
            "ffn_down": (use("Q4_K", first_eighth), use("Q4_K", eight_experts, more_bits)),
        },
        outputs_of_eight="Q5_K",
        usual_kl=0.102534,
    ),
    FileType(
        "IQ3_S",
        26,
        "IQ3_S",
        3.4375,
        parts={"attn_v": (use("Q4_K", grouped),)},
        outputs_of_eight="Q5_K",
        usual_kl=0.111278,
    ),
    FileType(
        "IQ3_XS",
        22,
        "IQ3_S",
        3.4375,
        "required",
        parts={
            "attn_q": (use("IQ3_XXS"),),
            "attn_k": (use("IQ3_XXS"),),
            "attn_v": (use("Q4_K", grouped),),
            "ffn_gate": (use("IQ3_XXS", middle),),
            "ffn_up": (use("IQ3_XXS", middle),),
        },
        outputs_of_eight="Q5_K",
        usual_kl=0.138693,
    ),
    FileType("Q3_K_S", 11, "Q3_K", 3.4375, outputs_of_eight="Q5_K", usual_kl=0.228217),
    FileType(
        "IQ3_XXS",
        23,
        "IQ3_XXS",
        3.0625,
        "required",
        head="Q5_K",
        embedding="IQ3_S",
        parts={
            "attn_q": (use("IQ2_S"),),
            "attn_k": (use("IQ2_S"),),
            "attn_v": (use("Q4_K", grouped), use("IQ3_S", unweighted)),
            "attn_output": (use("IQ3_S"),),
            "ffn_down": (use("Q4_K", first_eighth, unweighted), use("Q3_K", unweighted)),
        },
        outputs_of_eight="Q5_K",
        usual_kl=0.183625,
    ),
    FileType(
        "Q2_K",
        10,
        "Q2_K",
        2.625,
        parts={
            "attn_v": (use("Q4_K", grouped), use("Q3_K")),
            "attn_output": (use("Q3_K"),),
            "ffn_down": (use("Q3_K"),),
        },
        outputs_of_eight="Q5_K",
        usual_kl=0.445132,
    ),
    FileType(
        "IQ2_M",
        29,
        "IQ2_S",
        2.5625,
        "required",
        head="Q5_K",
        embedding="IQ3_S",
        parts=_TWO_BIT_MORE,
        seventy_b=False,
        usual_kl=0.325989,
    ),
    FileType(
        "IQ2_S",
        28,
        "IQ2_XS",
        2.3125,
        "required",
        head="Q5_K",
        embedding="IQ3_S",
        parts=_TWO_BIT_MORE,
        seventy_b=False,
        usual_kl=0.439197,
    ),
    FileType(
        "IQ2_XS",
        20,
        "IQ2_XS",
        2.3125,
        "required",
        head="Q5_K",
        embedding="Q2_K",
        parts=_TWO_BIT,
        seventy_b=False,
        usual_kl=0.54629,
    ),
    FileType(
        "IQ2_XXS",
        19,
        "IQ2_XXS",
        2.0625,
        "required",
        head="Q5_K",
        embedding="Q2_K",
        parts=_TWO_BIT,
        seventy_b=False,
        usual_kl=0.812022,
    ),
    FileType(
        "IQ1_M",
        31,
        "IQ1_M",
        1.75,
        "required",
        head="Q5_K",
        embedding="Q2_K",
        parts=_ONE_BIT,
        seventy_b=False,
        usual_kl=1.393084,
    ),
    FileType(
        "IQ1_S",
        24,
        "IQ1_S",
        1.5625,
        "required",
        head="Q5_K",
        embedding="Q2_K",
        parts=_ONE_BIT,
        seventy_b=False,
        usual_kl=2.254554,
    ),
    FileType("MXFP4_MOE", 38, "MXFP4", 4.25, "ignored", head="Q8_0", outside_experts="Q8_0"),
    FileType("TQ2_0", 37, "TQ2_0", 2.0625, "ignored", ternary=True, embedding="Q4_K"),
    FileType("TQ1_0", 36, "TQ1_0", 1.6875, "ignored", ternary=True, embedding="Q4_K"),
)

FILE_TYPES: Mapping[str, FileType] = {row.name: row for row in _ROWS}
"""The rows by name, in the order in which choices are listed: about from most to fewest bits."""

QUANTIZED = tuple(row.name for row in _ROWS if row.quantized)
FIRST_FILE_TYPES = ("F16", "Q8_0", "Q4_K_M")
"""The file types by default: exact, nearly exact, small."""
FIRST_QUANTIZED = tuple(name for name in FIRST_FILE_TYPES if FILE_TYPES[name].quantized)

ALIASES: Mapping[str, str] = {"MXFP4": "MXFP4_MOE", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Other names of rows: llama-quantize's, and MXFP4."""
_CANONICAL = {name.casefold(): name for name in FILE_TYPES} | {
    alias.casefold(): name for alias, name in ALIASES.items()
}


def file_type_name(given: object) -> object:
    """The name of the row that a name in any case, or an alias, means; anything else is returned unchanged."""
    return _CANONICAL.get(given.casefold(), given) if isinstance(given, str) else given


def _mixed(row: FileType) -> list[str]:
    rules = [rule.type for rules in row.parts.values() for rule in rules]
    return [row.base, row.common, row.head, *([row.embedding] if row.embedding else []), *rules]


TENSOR_TYPES = tuple(dict.fromkeys(name for row in _ROWS if not row.ternary for name in _mixed(row)))
"""The tensor types that the rows consist of, except those for ternary weights."""
_TENSOR_CANONICAL = {name.casefold(): name for name in TENSOR_TYPES}


def tensor_type_name(given: object) -> object:
    """The tensor type that a name in any case means; anything else is returned unchanged."""
    return _TENSOR_CANONICAL.get(given.casefold(), given) if isinstance(given, str) else given


def file_type_of_id(number: int) -> FileType | None:
    """The row with this `general.file_type`; None for an unknown number."""
    return next((row for row in _ROWS if row.id == number), None)


def needing_importance(names: list[str]) -> list[str]:
    """The file types among `names` that cannot be written without an importance matrix."""
    return [name for name in names if FILE_TYPES[name].importance == "required"]


def label_of(target_bits: float) -> str:
    """What files and reports call a file whose types are chosen for a size: BPW4_6 for 4.6 bits per weight."""
    return f"BPW{exact(target_bits).replace('.', '_')}"
