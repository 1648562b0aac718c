"""A file of a given size: its budget, the plan of its tensors, and the recipe that repeats it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engines.llama.ggml_types import TYPES
from exporters.budget.measure import candidates
from exporters.gguf.quant_types import Choice, FilePlan, is_quantized_matrix
from exporters.gguf.write import Model
from recipes.file_types import FILE_TYPES, label_of
from recipes.problems import OperatorError
from recipes.quantities import bits_per_weight, exact
from recipes.spelling import spell, spell_key


def budget_of(model: Model, target_bits: float) -> int:
    """Bytes of all matrices in a file with this many bits per weight; norms and other vectors are stored in F32."""
    others = sum(shape.rows * shape.columns for shape in model.shapes if not is_quantized_matrix(shape))
    return int(target_bits * model.parameters / 8) - 4 * others


def check_target(model: Model, target_bits: float, tensor_types: Mapping[str, str]) -> None:
    """Check that a file of this size is possible.

    Raises:
        OperatorError: the smallest types of the matrices are larger.
    """
    least = 0
    for shape in model.shapes:
        if is_quantized_matrix(shape):
            names = candidates(shape, target_bits, tensor_types, weighted=shape.layer is not None)
            least += shape.rows * min(TYPES[name].row_bytes(shape.columns) for name in names)
    budget = budget_of(model, target_bits)
    if least > budget:
        bits = target_bits + 8 * (least - budget) / model.parameters
        raise OperatorError(
            f"target_bits — got {exact(target_bits)}; allowed for this model: {bits_per_weight(bits)} or more",
            "its widths, its vectors or tensor_types leave no smaller types",
        )


def target_plan(model: Model, target_bits: float, types: Mapping[str, str]) -> FilePlan:
    """The plan of a file whose matrices have these types, by name."""
    rules = model.plan("Q8_0", importance=True)
    choices = [
        Choice(choice.shape, types[choice.shape.name], types[choice.shape.name])
        if choice.shape.name in types
        else choice
        for choice in rules.choices
    ]
    named = {name.removesuffix(".weight"): kind for name, kind in types.items()}
    return replace(
        rules,
        file_type=_file_type(types),
        choices=choices,
        weighted=True,
        tensor_types=named,
        label=label_of(target_bits),
    )


def _file_type(types: Mapping[str, str]) -> str:
    """The file type with the most frequent tensor type as its base, as llama.cpp guesses it."""
    counted = Counter(kind for kind in types.values() if not TYPES[kind].plain)
    most = counted.most_common(1)[0][0] if counted else "Q8_0"
    rows = [row.name for row in FILE_TYPES.values() if row.base == most]
    return next((name for name in (most, f"{most}_M") if name in rows), rows[0])


def recipe_text(fields: Mapping[str, Any], types: Mapping[str, str], comment: str) -> str:
    """A recipe with one export stage whose `tensor_types` name every matrix.

    Args:
        fields: the other fields of the stage.
        types: by the name of the matrix.
        comment: the first line.
    """
    lines = [f"# {comment}", "schema = 1", 'name = "target-bits"', "", "[[stage]]"]
    lines += [f"{spell_key(key)} = {spell(value)}" for key, value in fields.items()]
    lines += ["", "[stage.tensor_types]"]
    lines += [f"{spell_key(name.removesuffix('.weight'))} = {spell(kind)}" for name, kind in types.items()]
    return "\n".join(lines) + "\n"
