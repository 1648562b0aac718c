"""Replaces tensor types in a file's plan by those that the operator names for parts or single tensors.

A name is a part (`ffn_down`, `token_embd`), a tensor (`blk.3.ffn_down`, with or without `.weight`), or a pattern with
`*` for any characters (`blk.1*.attn_*`). The most exact name counts: a tensor before a pattern, a pattern before a
part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from engines.llama.ggml_types import TYPES
from exporters.gguf.quant_types import Choice, FilePlan, Shape, fitting, is_quantized_matrix
from exporters.gguf.tensor_kinds import EMBEDDINGS, OUTPUT
from recipes.file_types import TENSOR_TYPES, tensor_type_name
from recipes.problems import OperatorError, closest, printable

OPTION = "--tensor-types"
"""The option of the commands that quantize."""
WITHOUT_IMPORTANCE = (*EMBEDDINGS, OUTPUT)
"""Tensors that an importance matrix does not cover."""


def with_tensor_types(plan: FilePlan, tensor_types: Mapping[str, str]) -> FilePlan:
    """The plan with the operator's types; unchanged for a plain file type.

    Args:
        plan: by the rules of its file type.
        tensor_types: types by name; `check_tensor_types` has checked them.
    """
    if not tensor_types or not plan.quantized:
        return plan
    choices = []
    for choice in plan.choices:
        wanted = own_type(choice.shape, tensor_types)
        choices.append(
            choice if wanted is None else Choice(choice.shape, fitting(wanted, choice.shape.columns), wanted)
        )
    return replace(plan, choices=choices, tensor_types=dict(tensor_types))


def own_type(shape: Shape, tensor_types: Mapping[str, str]) -> str | None:
    """The operator's type of a tensor; None if no name means it, or llama.cpp does not quantize it."""
    if not is_quantized_matrix(shape):
        return None
    whole = shape.name.removesuffix(".weight")
    for name in (shape.name, whole):
        if name in tensor_types:
            return tensor_types[name]
    patterns = [name for name in tensor_types if "*" in name]
    fitting_pattern = next((name for name in patterns if _matches(whole, name)), None)
    return tensor_types.get(fitting_pattern or part_name(shape))


def part_name(shape: Shape) -> str:
    """A tensor's name within its layer, or its own name outside layers, without `.weight`."""
    parts = shape.name.removesuffix(".weight").split(".")
    return ".".join(parts[2:] if parts[0] == "blk" else parts)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern.removesuffix(".weight").replace("[", "[[]").replace("?", "[?]"))


def check_tensor_types(shapes: Iterable[Shape], tensor_types: Mapping[str, str], where: str = "tensor_types") -> None:
    """Check that every name means a matrix of the model, and that its type can be stored there.

    Args:
        shapes: every tensor of the model.
        tensor_types: types by name.
        where: the field or option, for messages.

    Raises:
        OperatorError: with every name that means no matrix, and every type that needs an importance matrix where there
            is never one.
    """
    matrices = [shape for shape in shapes if is_quantized_matrix(shape)]
    parts = list(dict.fromkeys(part_name(shape) for shape in matrices))
    problems = []
    for name, type_name in tensor_types.items():
        meant = [shape for shape in matrices if own_type(shape, {name: type_name}) is not None]
        shown = printable(name, 80)
        if not meant:
            hint = closest(name, parts) or f"parts: {', '.join(parts)}"
            problems.append(f"{where}.{shown} — the model has no such matrix; {hint}")
        outside = [shape.name for shape in meant if shape.name in WITHOUT_IMPORTANCE]
        if outside and TYPES[type_name].importance == "required":
            problems.append(
                f"{where}.{shown} — got {type_name}, which requires importances, but the importance matrix does not "
                f"cover {outside[0]}"
            )
    if problems:
        raise OperatorError("\n".join(problems))


def checked_tensor_types(given: Mapping[str, object]) -> dict[str, str]:
    """Tensor types by name, spelled as llama.cpp does.

    Raises:
        OperatorError: a type is unknown; every one is reported.
    """
    found = {name: tensor_type_name(value) for name, value in given.items()}
    problems = [
        f"{OPTION} — {printable(name, 80)}: got {printable(str(value), 40)}; allowed {', '.join(TENSOR_TYPES)}"
        + (f"; {hint}" if (hint := closest(str(value).upper(), TENSOR_TYPES)) else "")
        for name, value in found.items()
        if value not in TENSOR_TYPES
    ]
    if problems:
        raise OperatorError("\n".join(problems))
    return {name: str(value) for name, value in found.items()}
