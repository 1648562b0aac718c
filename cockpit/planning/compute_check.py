"""What a recipe's trainings could not compute with on this machine: kernels without a GPU, code without a compiler."""

from __future__ import annotations

from collections.abc import Iterator

from engines.device_identity import nvidia_gpus
from engines.processor import NO_COMPILER, NO_GPU_FOR_LIGER, cpp_compiler
from recipes.load import LoadedRecipe
from recipes.problems import Problem
from recipes.stages.fields import ComputeFields


def compute_problems(loaded: LoadedRecipe) -> list[Problem]:
    """The fields of how a training computes that this machine cannot follow, each at its line."""
    return [
        Problem(loaded.path, loaded.line_of(stage.name, field), f"{stage.name}.{field}", message, hint=way_out)
        for stage in loaded.recipe.stage
        if isinstance(stage, ComputeFields)
        for field, (message, way_out) in _impossible(stage)
    ]


def _impossible(stage: ComputeFields) -> Iterator[tuple[str, tuple[str, str]]]:
    if stage.use_liger_kernel and not nvidia_gpus():
        yield "use_liger_kernel", NO_GPU_FOR_LIGER
    if stage.torch_compile and not cpp_compiler():
        yield "torch_compile", NO_COMPILER
