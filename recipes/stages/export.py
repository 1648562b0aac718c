"""The export stage."""

from __future__ import annotations

import re
from typing import Literal, get_args

from pydantic import field_validator, model_validator

from recipes.file_types import FILE_TYPES, FIRST_FILE_TYPES, label_of, needing_importance
from recipes.problems import shown
from recipes.setting import setting
from recipes.stages.fields import MODEL_OUTPUTS, FilesFields
from recipes.stages.kind import LIGHT, StageKind
from recipes.stages.type_names import FileTypeName, TensorTypeName

ByteProof = Literal["all", "sampled"]
BYTE_PROOFS: tuple[ByteProof, ...] = get_args(ByteProof)
DATA_OUTPUTS = ("messages", "tokens", "text")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
"""What an operator may choose as the beginning of file names."""
COMPARE_NEEDS = (*LIGHT, "torch", "transformers", "gguf", "sentencepiece", "protobuf", "xllamacpp")
"""Distributions that are needed to write GGUF files and compare them with their model."""


_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s?([KMGT])(i?)B", re.IGNORECASE)


def shard_bytes(text: str) -> int:
    """The bytes of a size such as `50GB` or `2GiB`, as transformers reads `max_shard_size`."""
    found = _SIZE.fullmatch(text)
    assert found is not None, "the schema checks the form"
    return int(float(found[1]) * (1024 if found[3] else 1000) ** ("KMGT".index(found[2].upper()) + 1))


class ExportStage(FilesFields):
    """GGUF files of the given types, compared with their source model."""

    kind: Literal["export"] = "export"
    model: str = setting(section="Inputs", accepts=MODEL_OUTPUTS, help="The model: a stage, a folder, or a hub id.")
    adapter: str | None = setting(
        None,
        section="Inputs",
        accepts=("adapter",),
        help="Adapter to merge into the model while the files are written; no merged copy is stored.",
    )
    data: str | None = setting(
        None,
        section="Inputs",
        accepts=DATA_OUTPUTS,
        help="Held-out text for the parity check and the importance matrix: a stage, a text file, or a folder of text"
        " files; by default, text from the Python standard library.",
    )
    file_types: list[FileTypeName] = setting(
        default_factory=lambda: list(FIRST_FILE_TYPES),
        section="Files",
        min_length=1,
        help="GGUF file types to write.",
    )
    file_name: str | None = setting(
        None,
        section="Files",
        help="Beginning of the files' names, before the file type; by default, the base model's name, its size and the"
        " runs that trained it, as in GGUF's naming convention.",
    )
    max_shard_size: str = setting(
        "50GB",
        section="Files",
        advanced=True,
        help="Files with more bytes of tensors are split, as llama.cpp splits them; 50GB is the most that a model hub"
        " takes. Units: KB, MB, GB, TB, and KiB, MiB, GiB, TiB.",
    )
    tensor_types: dict[str, TensorTypeName] = setting(
        default_factory=dict,
        section="Files",
        help="Tensor types that replace those of the quantized file types, by part (ffn_down, token_embd), by tensor"
        " (blk.0.ffn_down) or by a pattern with *; the most exact name counts.",
    )
    target_bits: float | None = setting(
        None,
        section="Files",
        gt=1,
        le=8.5,
        unit="bits per weight",
        help="Also write a file of this size: the type of each tensor is chosen by its importances and by the error"
        " that it causes on held-out text. The choice is written as a recipe.",
    )
    target_tokens: int = setting(
        2048,
        section="Files",
        ge=64,
        unit="tokens",
        advanced=True,
        help="Amount of the importance matrix's text on which target_bits measures errors; each matrix is measured on"
        " all of it.",
    )
    adapters: list[str] = setting(
        default_factory=list,
        section="Inputs",
        accepts=("adapter",),
        help="Adapters of this model to write as GGUF adapters; llama.cpp applies them when it loads one of the files.",
    )
    adapter_type: Literal["F16", "F32"] = setting(
        "F16", section="Files", advanced=True, help="Tensor type of the matrices in GGUF adapters."
    )
    imatrix: Literal["auto", "always", "never"] = setting(
        "auto",
        section="Importance",
        help="When to compute an importance matrix from held-out text: auto, only for the types that require one"
        f" ({', '.join(needing_importance(list(FILE_TYPES)))}); always, for every quantized type; never.",
    )
    imatrix_tokens: int = setting(
        16_384,
        section="Importance",
        ge=256,
        unit="tokens",
        help="Amount of held-out text for the importance matrix; the comparison reads other text.",
    )
    converter: Literal["own", "upstream"] = setting(
        "own",
        section="Programs",
        advanced=True,
        help="Converter to GGUF: own, for the model families that Cockpit supports; upstream, for other families, which"
        " runs convert_hf_to_gguf.py of a llama.cpp checkout or of llama-cpp-python's unpacked source (llama_cpp).",
    )
    quantizer: Literal["auto", "llama-quantize", "kernels", "numpy"] = setting(
        "auto",
        section="Programs",
        advanced=True,
        help="Quantizer: auto uses your own llama-quantize if it is found, else llama.cpp's kernels, else numpy; each"
        " is tested on fixed numbers before it is used.",
    )
    llama_cpp: str | None = setting(
        None,
        section="Programs",
        folder=True,
        advanced=True,
        help="Your llama.cpp: a folder with llama-quantize, or a checkout with its build; by default,"
        " COCKPIT_LLAMA_CPP, then PATH.",
    )
    i2s: Literal["none", "x86-128", "arm-64", "x86-rows4"] = setting(
        "none",
        section="Files",
        advanced=True,
        help="Also write an i2_s file for bitnet.cpp, in this byte layout; choose the one that your build of bitnet.cpp"
        " reads. Only for models trained with ternary weights; for llama.cpp, use TQ2_0.",
    )
    byte_proof: ByteProof = setting(
        "all",
        section="Parity",
        advanced=True,
        help="Rows of each tensor to derive again from the model and compare byte for byte: all, which takes about as"
        " long as writing the files; or sampled, six rows of each tensor.",
    )
    parity_positions: int = setting(
        2048,
        section="Parity",
        ge=0,
        help="Token positions of each file to compare with transformers; 0 skips the comparison.",
    )
    max_length: int = setting(256, section="Parity", ge=8, unit="tokens", help="Context length of the comparison.")

    @field_validator("file_name")
    @classmethod
    def _part_of_a_file_name(cls, value: str | None) -> str | None:
        if value is not None and (FILE_NAME.fullmatch(value) is None or value.endswith(".gguf")):
            raise ValueError(
                f"file_name — not the beginning of a file's name; got {shown(value)}; allowed: 1 to 120 characters of"
                " A-Z, a-z, 0-9, '.', '_' and '-', without .gguf"
            )
        return value

    @field_validator("max_shard_size")
    @classmethod
    def _a_size(cls, value: str) -> str:
        if _SIZE.fullmatch(value) is None or shard_bytes(value) < 1000:
            raise ValueError(
                f"max_shard_size — not a size; got {shown(value)}; allowed: a number with KB, MB, GB, TB, KiB, MiB, GiB"
                " or TiB, such as 50GB"
            )
        return value

    @model_validator(mode="after")
    def _one_way_for_adapters(self) -> ExportStage:
        if self.adapter is not None and self.adapters:
            raise ValueError(
                "adapters — cannot be combined with adapter, which changes the model under them; got both; allowed: one"
                " of the two, or a merge stage before the export"
            )
        return self

    @model_validator(mode="after")
    def _what_upstream_leaves_out(self) -> ExportStage:
        if self.converter != "upstream":
            return self
        left_out = {"i2s": self.i2s != "none", "target_bits": self.target_bits is not None}
        wrong = [name for name, asked in left_out.items() if asked]
        if wrong:
            raise ValueError(
                f"converter — upstream cannot be combined with {' and '.join(wrong)}, which Cockpit writes from the"
                " model folder; got upstream; allowed: own, or other file types"
            )
        return self

    @model_validator(mode="after")
    def _types_where_used(self) -> ExportStage:
        if self.tensor_types and not any(FILE_TYPES[name].quantized for name in self.file_types):
            raise ValueError(
                "tensor_types — applies to quantized file types only; got none in file_types; allowed: a quantized file"
                " type, such as Q4_K_M"
            )
        return self

    @model_validator(mode="after")
    def _importance_where_needed(self) -> ExportStage:
        if self.target_bits is not None and self.imatrix == "never":
            raise ValueError("imatrix — target_bits uses an importance matrix; got never; allowed: auto or always")
        needing = needing_importance(self.file_types)
        if needing and self.imatrix == "never":
            raise ValueError(
                f"imatrix — {', '.join(needing)} cannot be written without an importance matrix; got never; allowed:"
                " auto or always"
            )
        return self


_TO_TRAINED = ("kl_to_trained", "top1_to_trained")
"""Distance from the model that was trained. Over a 4-bit base that is another one than the exported model."""
_OF_FILES = ("bytes", "bits_per_weight", "bytes_proof_s")
_OF_COMPARISONS = (
    "mean_kl",
    "max_kl",
    "top1",
    "top1_differences",
    "perplexity_ratio",
    "arithmetic_mean_kl",
    "weights_mean_kl",
    "tokens_per_second",
    "rss_bytes",
    "answers_ended",
    *_TO_TRAINED,
)


_OF_ADAPTERS = ("mean_kl", "max_kl", "top1", *_TO_TRAINED)
"""Of each GGUF adapter over each file; their names begin with the adapter's, which depends on its manifest."""


def _metrics(stage: ExportStage) -> tuple[str, ...]:
    compared = stage.parity_positions > 0
    names = [*_OF_FILES, *(_OF_COMPARISONS if compared else ())]
    types = [*stage.file_types, *([] if stage.target_bits is None else [label_of(stage.target_bits)])]
    found = [f"{file_type.lower()}_{name}" for file_type in types for name in names]
    found += ["files_refused", "imatrix_tokens", *(("positions",) if compared else ())]
    found += [f"model_{name}" for name in _TO_TRAINED] if compared else []
    found += ["merge_mean_kl", "merge_top1"] if stage.adapter and compared else []
    found += ["i2s_bytes"] if stage.i2s != "none" else []
    if stage.adapters:
        found += ["*_bytes", *(f"*_{name}" for name in (_OF_ADAPTERS if compared else ()))]
    return tuple(found)


def _needs(stage: ExportStage) -> tuple[str, ...]:
    return (*COMPARE_NEEDS, "peft") if stage.adapter or stage.adapters else COMPARE_NEEDS


EXPORT = StageKind(
    kind="export",
    types={"gguf": ExportStage},
    module="exporters.stages.export_stage",
    needs=_needs,
    metrics=_metrics,
    metrics_if=(("parity_positions", 1, "parity_positions to a number above 0"),),
    same_shape_as="model",
    reads_model_config=True,
)
