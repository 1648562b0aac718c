"""Check that exports of the ternary file types get a model with ternary values; at launch and for `cockpit check`.

A model that the recipe creates is known by its fields. The values of a model folder are checked by the export itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cockpit.planning.stages import base_of
from recipes.file_types import FILE_TYPES
from recipes.load import LoadedRecipe
from recipes.problems import Problem
from recipes.stages.decoder.model_types import LINEAR, TERNARY
from recipes.stages.export import ExportStage
from recipes.stages.fields import StageFields


def ternary_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Ternary types of a model that the recipe trains with other values, each at its line."""
    by_name: dict[str, StageFields] = {stage.name: stage for stage in loaded.recipe.stage}
    return [
        Problem(loaded.path, loaded.line_of(stage.name, field), f"{stage.name}.{field}", message, hint=hint)
        for stage in loaded.recipe.stage
        if isinstance(stage, ExportStage)
        for field, message, hint in _of_export(stage, by_name)
    ]


def _of_export(stage: ExportStage, by_name: Mapping[str, StageFields]) -> Iterator[tuple[str, str, str]]:
    base = base_of(stage, by_name)
    if base is None or (base.linear == TERNARY and stage.model == base.name):
        return
    wanted = {"file_types": [name for name in stage.file_types if FILE_TYPES[name].ternary]}
    wanted["i2s"] = ["i2_s"] if stage.i2s != "none" else []
    reason = f'{base.name} is not trained with {LINEAR} = "{TERNARY}"'
    hint = f'set {base.name}.{LINEAR} = "{TERNARY}", or choose Q2_K or IQ2_XXS'
    if base.linear == TERNARY:
        reason, hint = f"{stage.model} has changed the ternary values of {base.name}", f"export {base.name} itself"
    for field, names in wanted.items():
        if names:
            yield field, f"{', '.join(names)} stores only -s, 0 and s, but {reason}", hint
