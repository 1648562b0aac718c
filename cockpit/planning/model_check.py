"""Check that the model folders of a recipe can be loaded, merged and exported; at launch and for `cockpit check`.

A folder's config.json is enough to refuse a 4-bit base model, a model family that is not supported, or a setting that
GGUF cannot represent, also of a model that the recipe tunes or merges before it exports it. A model that the recipe
creates is checked when its stage runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cockpit.planning.base_check import check_base, loads_in_transformers, start_problems
from cockpit.planning.compute_check import compute_problems
from cockpit.planning.folder_check import folder_problems
from cockpit.planning.judging.gate_check import gate_problems
from cockpit.planning.judging.test_rows_check import test_row_problems
from cockpit.planning.output_check import output_problems
from cockpit.planning.source_check import source_problems
from cockpit.planning.stages import cached_folder, model_folder
from cockpit.planning.target_modules import unknown_layers
from cockpit.planning.ternary_check import ternary_problems
from engines.files import read_regular_text
from engines.inputs.hub_cache import cached_model
from engines.json_text import read_object
from exporters.hf_model.architectures import architecture_of
from exporters.hf_model.model_config import check_counts, complete_config
from exporters.upstream.script import find_converter
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, RecipeError, printable, shown
from recipes.stages.export import ExportStage
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneStage
from recipes.stages.registry import row_of, tag_of_stage

_FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".json", ".toml", ".jsonl", ".txt")
"""Endings of names that a model of a hub does not have."""


def check_models(loaded: LoadedRecipe) -> None:
    """Refuse a recipe whose stages do not support the model folders that it names.

    Raises:
        RecipeError: the problems, each at the line that names the folder.
        OperatorError: the same without lines, for a recipe that is not in a file.
    """
    problems: list[Problem] = []
    in_file = _is_of_its_file(loaded)
    by_name: dict[str, StageFields] = {stage.name: stage for stage in loaded.recipe.stage}
    for stage in loaded.recipe.stage:
        if isinstance(stage, FinetuneStage):
            problems += _layers(loaded, stage, by_name, in_file=in_file)
        named = loaded.graph.inputs[stage.name].get("model")
        if named is None:
            continue
        try:
            if named.path is not None or named.origin == "hub":
                folder = named.path or _cached(named.name, loaded.path.parent)
            else:
                folder = _exported_from(loaded, stage, by_name)
            if folder is not None:
                _check(folder, stage)
        except OperatorError as error:
            if not in_file:
                raise
            line = loaded.line_of(stage.name, "model")
            problems += [
                Problem(loaded.path, line, f"{stage.name}.model", message, hint=error.hint)
                for message in error.message.splitlines()
            ]
    more = (
        output_problems,
        start_problems,
        source_problems,
        compute_problems,
        ternary_problems,
        gate_problems,
        test_row_problems,
    )
    refuse(loaded, [*problems, *(problem for find in more for problem in find(loaded))])


def check_folders(loaded: LoadedRecipe) -> None:
    """Refuse folders of models and adapters that a merge or an export could not read: weights, tokenizer, settings.

    After `check_models`: it takes a second, in a child process.

    Raises:
        RecipeError, OperatorError: as `check_models`.
    """
    refuse(loaded, folder_problems(loaded))


def refuse(loaded: LoadedRecipe, problems: Sequence[Problem]) -> None:
    """Refuse a recipe with problems.

    Raises:
        RecipeError: the problems, for a recipe in a file.
        OperatorError: the same without lines, for a recipe that is not in a file.
    """
    if problems and not _is_of_its_file(loaded):
        raise OperatorError("\n".join(problem.words for problem in problems))
    if problems:
        raise RecipeError(list(problems))


def _layers(
    loaded: LoadedRecipe, stage: FinetuneStage, by_name: Mapping[str, StageFields], *, in_file: bool
) -> list[Problem]:
    """The names of layers in the stage's fields that the model does not have.

    Raises:
        OperatorError: there are some, and the recipe is not in a file.
    """
    found = unknown_layers(stage, by_name, loaded.graph)
    if found and not in_file:
        first = found[0]
        names = ", ".join(one.name for one in found if one.field == first.field)
        raise OperatorError(f"{first.field} — {first.what}; got {printable(names, 200)}", first.hint)
    place = next(number for number, item in enumerate(loaded.recipe.stage) if item.name == stage.name)
    tag = tag_of_stage(stage)
    return [
        loaded.source.problem(("stage", place, one.field, one.number), one.what, shown(one.name), "", one.hint, tag)
        for one in found
    ]


def _is_of_its_file(loaded: LoadedRecipe) -> bool:
    """Whether the recipe's text is the content of its file; False for an unsaved form and for a button's recipe."""
    try:
        return read_regular_text(loaded.path) == loaded.text
    except (OSError, ValueError):
        return False


def _cached(hub_id: str, near: Path) -> Path | None:
    """The folder of a hub's model in the local cache; None if the operator lets engines use the network.

    Raises:
        OperatorError: it is not there, or the name is rather a path.
    """
    found = cached_model(hub_id)
    if found is not None or os.environ.get("HF_HUB_OFFLINE") == "0":
        return found
    if (near / hub_id).exists():
        raise OperatorError(f"{hub_id} reads as a hub id, but is a path here", f"write ./{hub_id}")
    if (near / hub_id).parent.is_dir() or hub_id.lower().endswith(_FILES):
        raise OperatorError(f"there is no path {near / hub_id}, and no model {hub_id} in the local hub cache")
    raise OperatorError(
        f"no model {hub_id} in the local hub cache, and engines do not use the network",
        f"download it first: cockpit pull {hub_id}; for a folder, write a path that begins with / ./ ../ or ~/",
    )


def _exported_from(loaded: LoadedRecipe, stage: StageFields, by_name: Mapping[str, StageFields]) -> Path | None:
    """The folder whose family and settings a model has that the recipe tunes or merges, and then exports.

    Without it, the export would refuse them after the trainings before it.
    """
    if not isinstance(stage, ExportStage):
        return None
    folder = model_folder(stage, by_name, loaded.graph) or cached_folder(stage, by_name, loaded.graph)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def _check(folder: Path, stage: StageFields) -> None:
    if not row_of(stage).reads_model_config:
        if (folder / "config.json").is_file():  # an adapter folder has no config.json
            check_counts(folder, read_object(folder / "config.json"))
        if loads_in_transformers(stage):
            check_base(folder, stage)
        return
    if isinstance(stage, ExportStage) and stage.converter == "upstream":
        find_converter(stage.llama_cpp)
    config = complete_config(folder, read_object(folder / "config.json"))
    if isinstance(stage, ExportStage) and stage.converter == "own":
        architecture_of(folder, config)
