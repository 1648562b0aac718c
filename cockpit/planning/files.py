"""The GGUF files that a recipe's exports will write, from the fields of the pretrain stage that creates the model.

If the model's widths are not multiples of a type's block size, tensors are stored in larger types, up to F16. The plan
warns of it before the model is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cockpit.planning.models import file_plan, file_plans
from exporters.gguf.own_types import check_tensor_types, with_tensor_types
from exporters.gguf.quant_types import FilePlan, Shape, model_shapes
from exporters.hf_model.architectures import ARCHITECTURES
from recipes.file_types import label_of
from recipes.problems import OperatorError
from recipes.stages.export import ExportStage
from recipes.stages.pretrain import PretrainStage

SUPER_BLOCK = 256
"""Values in a block of the K and IQ types; a tensor gets its type if its width is a multiple of it."""


@dataclass(frozen=True)
class PlannedFile:
    """One file of an export.

    Attributes:
        stage: the export's name.
        file_type: GGUF file type.
        bytes: size of its tensors.
        bits_per_weight: effective, over all tensors.
        fallbacks: number of tensors that are stored in another type.
        tensors: number of all tensors.
        warning: lines with their fields: which tensors get another type and what to change, and names in
            `tensor_types` that the model does not have; empty without any.
    """

    stage: str
    file_type: str
    bytes: int
    bits_per_weight: float
    fallbacks: int
    tensors: int
    warning: str


def planned_files(export: ExportStage, base: PretrainStage, vocab_size: int) -> Iterator[PlannedFile]:
    """The files that an export of a model with these fields will write."""
    shapes = model_shapes(ARCHITECTURES[base.decoder.class_name], {**base.config(), "vocab_size": vocab_size})
    wrong = _wrong_names(export, shapes)
    for file_type in dict.fromkeys(export.file_types):
        plan = with_tensor_types(_plan(file_type, export, base, shapes), export.tensor_types)
        yield _planned(export, plan, _warning(plan, base), wrong)
        wrong = ""
    yield from _of_target(export, shapes)


def files_of_folder(export: ExportStage, folder: Path) -> Iterator[PlannedFile]:
    """The files that an export of a model folder will write, from its config.json; empty if that has no shapes."""
    types = list(dict.fromkeys(export.file_types))
    plans = file_plans(folder, types, export.imatrix == "always")
    if not plans:
        return
    shapes = [choice.shape for choice in next(iter(plans.values())).choices]
    wrong = _wrong_names(export, shapes)
    for rules in plans.values():
        plan = with_tensor_types(rules, export.tensor_types)
        yield _planned(export, plan, plan.fallback_note(), wrong)
        wrong = ""
    yield from _of_target(export, shapes)


def _wrong_names(export: ExportStage, shapes: list[Shape]) -> str:
    """The lines about names in `tensor_types` that the model does not have."""
    try:
        check_tensor_types(shapes, export.tensor_types)
    except OperatorError as error:
        return error.message
    return ""


def _of_target(export: ExportStage, shapes: list[Shape]) -> Iterator[PlannedFile]:
    """The file of `target_bits`: its size is known before its types are."""
    if export.target_bits is not None:
        weights = sum(shape.rows * shape.columns for shape in shapes)
        size = int(export.target_bits * weights / 8)
        yield PlannedFile(export.name, label_of(export.target_bits), size, export.target_bits, 0, len(shapes), "")


def _planned(export: ExportStage, plan: FilePlan, note: str, wrong: str) -> PlannedFile:
    lines = [*([f"file_types — {note}"] if note else []), *([wrong] if wrong else [])]
    return PlannedFile(
        export.name,
        plan.file_type,
        plan.bytes,
        plan.bits_per_weight,
        len(plan.fallbacks),
        len(plan.choices),
        "\n".join(lines),
    )


def _plan(file_type: str, export: ExportStage, base: PretrainStage, shapes: list[Shape]) -> FilePlan:
    return file_plan(
        file_type,
        shapes,
        layers=base.num_hidden_layers,
        gqa=base.num_attention_heads // base.num_key_value_heads,
        importance=export.imatrix == "always",
        seventy_b=ARCHITECTURES[base.decoder.class_name].is_seventy_b(base.num_hidden_layers),
    )


def _warning(plan: FilePlan, base: PretrainStage) -> str:
    note = plan.fallback_note()
    if not note:
        return ""
    named = {"hidden_size": base.hidden_size, "intermediate_size": base.intermediate_size}
    odd = [f"{name} ({width})" for name, width in named.items() if width % SUPER_BLOCK]
    return f"{note}; multiples of {SUPER_BLOCK} for {' and '.join(odd)} would avoid this" if odd else note
