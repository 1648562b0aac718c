"""The GGUF files that a recipe's exports will write, from the fields of the pretrain stage that the model goes back to.

A model whose widths do not divide into a type's blocks is best told before it is trained: its quantized files would be
stored in larger types, up to the size of F16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cockpit.planning.models import file_plan, file_plans
from exporters.gguf.quant_types import FilePlan, Shape, model_shapes
from exporters.hf_model.architectures import LLAMA
from recipes.stages.export import ExportStage
from recipes.stages.pretrain import PretrainStage

SUPER_BLOCK = 256
"""Values of a block of every K and IQ type: widths that are multiples of it get the type they ask for."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of an export.

    Attributes:
        stage: the export's name.
        file_type: GGUF file type.
        bytes: size of its tensors.
        bits_per_weight: effective, over all tensors.
        fallbacks: how many tensors do not get the type they should have.
        tensors: of how many.
        warning: what the widths do to the type, and what to change; empty when nothing.
    """

    stage: str
    file_type: str
    bytes: int
    bits_per_weight: float
    fallbacks: int
    tensors: int
    warning: str


def planned_files(export: ExportStage, base: PretrainStage, vocab_size: int) -> Iterator[PlannedFile]:
    """What an export of a model with these fields will write."""
    fields: Mapping[str, object] = {**base.model_dump(), "head_dim": None, "vocab_size": vocab_size}
    shapes = model_shapes(LLAMA, fields)
    for file_type in dict.fromkeys(export.file_types):
        plan = _plan(file_type, export, base, shapes)
        yield _planned(export, plan, _warning(plan, base))


def files_of_folder(export: ExportStage, folder: Path) -> Iterator[PlannedFile]:
    """What an export of a model folder will write, from its config.json; nothing where that does not tell."""
    types = list(dict.fromkeys(export.file_types))
    for plan in file_plans(folder, types, export.imatrix == "always").values():
        yield _planned(export, plan, plan.fallback_note())


def _planned(export: ExportStage, plan: FilePlan, warning: str) -> PlannedFile:
    return PlannedFile(
        export.name,
        plan.file_type,
        plan.bytes,
        plan.bits_per_weight,
        len(plan.fallbacks),
        len(plan.choices),
        warning,
    )


def _plan(file_type: str, export: ExportStage, base: PretrainStage, shapes: list[Shape]) -> FilePlan:
    return file_plan(
        file_type,
        shapes,
        layers=base.num_hidden_layers,
        gqa=base.num_attention_heads // base.num_key_value_heads,
        importance=export.imatrix == "always",
        seventy_b=LLAMA.is_seventy_b(base.num_hidden_layers),
    )


def _warning(plan: FilePlan, base: PretrainStage) -> str:
    note = plan.fallback_note()
    if not note:
        return ""
    named = {"hidden_size": base.hidden_size, "intermediate_size": base.intermediate_size}
    odd = [f"{name} ({width})" for name, width in named.items() if width % SUPER_BLOCK]
    return f"{note}; multiples of {SUPER_BLOCK} for {' and '.join(odd)} would avoid that" if odd else note
