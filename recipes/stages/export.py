"""The export stage."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.file_types import FILE_TYPES, FIRST_FILE_TYPES, FileTypeName, needing_importance
from recipes.setting import setting
from recipes.stages.fields import MODEL_OUTPUTS, StageFields
from recipes.stages.kind import LIGHT, StageKind

DATA_OUTPUTS = ("messages", "tokens", "text")
COMPARE_NEEDS = (*LIGHT, "torch", "transformers", "gguf", "sentencepiece", "protobuf", "xllamacpp")
"""Distributions that write GGUF files and compare them with their model."""


class ExportStage(StageFields):
    """GGUF files of the given types, compared with the model they come from."""

    kind: Literal["export"] = "export"
    model: str = setting(section="Inputs", accepts=MODEL_OUTPUTS, help="A stage's model, a folder, or a hub id.")
    adapter: str | None = setting(
        None,
        section="Inputs",
        accepts=("adapter",),
        help="An adapter that is merged into the model while the files are written, without a merged copy on the disk.",
    )
    data: str | None = setting(
        None,
        section="Inputs",
        accepts=DATA_OUTPUTS,
        help="Held-out text of the parity check and the importance matrix: a stage, a text file or a folder "
        "of text files;"
        " standard-library text by default.",
    )
    file_types: list[FileTypeName] = setting(
        default_factory=lambda: list(FIRST_FILE_TYPES),
        section="Files",
        min_length=1,
        help="GGUF file types to write.",
    )
    adapters: list[str] = setting(
        default_factory=list,
        section="Inputs",
        accepts=("adapter",),
        help="Adapters of this model, each written as a GGUF adapter that llama.cpp applies when it loads one "
        "of the files.",
    )
    adapter_type: Literal["F16", "F32"] = setting(
        "F16", section="Files", advanced=True, help="Type of the GGUF adapters' matrices."
    )
    imatrix: Literal["auto", "always", "never"] = setting(
        "auto",
        section="Files",
        help="Importance matrix, computed from held-out text: auto for the types that cannot be written without"
        f" ({', '.join(needing_importance(list(FILE_TYPES)))}), always for every quantized type.",
    )
    imatrix_tokens: int = setting(
        16_384,
        section="Files",
        ge=256,
        unit="tokens",
        help="Held-out text that the importance matrix is computed from; never what the comparison reads.",
    )
    converter: Literal["own", "upstream"] = setting(
        "own",
        section="Files",
        advanced=True,
        help="What writes GGUF: own, for the families that are known here; upstream runs convert_hf_to_gguf.py of "
        "your llama.cpp"
        " checkout (llama_cpp), for others.",
    )
    quantizer: Literal["auto", "llama-quantize", "kernels", "numpy"] = setting(
        "auto",
        section="Files",
        advanced=True,
        help="What quantizes: auto takes your own llama-quantize if there is one, else llama.cpp's kernels, else numpy;"
        " each is tested on fixed numbers before it is used.",
    )
    llama_cpp: str | None = setting(
        None,
        section="Files",
        folder=True,
        advanced=True,
        help="Your llama.cpp: a folder with llama-quantize, or a checkout with its build; by default COCKPIT_LLAMA_CPP,"
        " then the PATH.",
    )
    i2s: Literal["none", "x86-128", "arm-64", "x86-rows4"] = setting(
        "none",
        section="Files",
        advanced=True,
        help="Also write bitnet.cpp's i2_s, in this byte layout: the one that your reader was built for. "
        "Only for models"
        " trained with ternary weights; llama.cpp reads TQ2_0 instead.",
    )
    parity_positions: int = setting(
        2048,
        section="Parity",
        ge=0,
        help="Token positions compared with transformers per file; 0 skips the comparison.",
    )
    max_length: int = setting(256, section="Parity", ge=8, unit="tokens", help="Context length of the comparison.")

    @model_validator(mode="after")
    def _one_way_for_adapters(self) -> ExportStage:
        if self.adapter is not None and self.adapters:
            raise ValueError(
                "adapters — are put over the model as it is; got adapter as well, which changes it; allowed: one "
                "of the two, or a"
                " merge stage first"
            )
        return self

    @model_validator(mode="after")
    def _what_upstream_leaves_out(self) -> ExportStage:
        if self.converter != "upstream":
            return self
        rows = [FILE_TYPES[name] for name in self.file_types]
        needing = [row.name for row in rows if row.importance == "required" or row.ternary]
        left_out = {
            "adapter": self.adapter is not None,
            "adapters": bool(self.adapters),
            "i2s": self.i2s != "none",
            "imatrix": self.imatrix == "always",
            f"file_types ({', '.join(needing)})": bool(needing),
        }
        wrong = [name for name, asked in left_out.items() if asked]
        if wrong:
            raise ValueError(
                f"converter — got upstream together with {', '.join(wrong)}, which need the model's names of "
                "tensors; allowed: own, or"
                " a merge stage before and types without importance matrix"
            )
        return self

    @model_validator(mode="after")
    def _importance_where_needed(self) -> ExportStage:
        needing = needing_importance(self.file_types)
        if needing and self.imatrix == "never":
            raise ValueError(
                f"imatrix — {', '.join(needing)} cannot be written without an importance matrix; got never; "
                "allowed: auto or"
                " always"
            )
        return self


def _needs(stage: ExportStage) -> tuple[str, ...]:
    return (*COMPARE_NEEDS, "peft") if stage.adapter or stage.adapters else COMPARE_NEEDS


EXPORT = StageKind(
    kind="export",
    types={"gguf": ExportStage},
    module="exporters.stages.export_stage",
    needs=_needs,
    same_shape_as="model",
    reads_model_config=True,
)
