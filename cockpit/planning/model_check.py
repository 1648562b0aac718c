"""Check that the model folders of a recipe can be loaded, merged and exported; at launch and for `cockpit check`.

A folder's config.json is enough to refuse a 4-bit base model, a model family that is not supported, or a setting that
GGUF cannot represent. A model that the recipe creates, or a model of a hub, is checked when its stage runs.
"""

from __future__ import annotations

from pathlib import Path

from engines.files import read_regular_text
from engines.json_text import read_object
from exporters.hf_model.architectures import architecture_of
from exporters.hf_model.model_config import check_counts, complete_config
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, RecipeError
from recipes.stages.export import ExportStage
from recipes.stages.fields import StageFields
from recipes.stages.registry import row_of


def check_models(loaded: LoadedRecipe) -> None:
    """Refuse a recipe whose stages do not support the model folders that it names.

    Raises:
        RecipeError: the problems, each at the line that names the folder.
        OperatorError: the same without lines, for a recipe that is not in a file.
    """
    problems: list[Problem] = []
    in_file = _is_of_its_file(loaded)
    for stage in loaded.recipe.stage:
        named = loaded.graph.inputs[stage.name].get("model")
        if named is None or named.path is None:
            continue
        try:
            _check(named.path, stage)
        except OperatorError as error:
            if not in_file:
                raise
            line = loaded.line_of(stage.name, "model")
            problems += [
                Problem(loaded.path, line, f"{stage.name}.model", message, hint=error.hint)
                for message in error.message.splitlines()
            ]
    if problems:
        raise RecipeError(problems)


def _is_of_its_file(loaded: LoadedRecipe) -> bool:
    """Whether the recipe's text is the content of its file; False for an unsaved form and for a button's recipe."""
    try:
        return read_regular_text(loaded.path) == loaded.text
    except (OSError, ValueError):
        return False


def _check(folder: Path, stage: StageFields) -> None:
    if not row_of(stage).reads_model_config:
        if (folder / "config.json").is_file():  # an adapter folder has no config.json
            check_counts(folder, read_object(folder / "config.json"))
        return
    config = complete_config(folder, read_object(folder / "config.json"))
    if isinstance(stage, ExportStage) and stage.converter == "own":
        architecture_of(folder, config)
