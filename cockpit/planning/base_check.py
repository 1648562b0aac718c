"""Check the folder of a model that a stage will load in transformers, from the names of its files and config.json; and
the adapter or the model that a training starts from, whose every tensor the engine compares, by its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cockpit.planning.models import tensor_types
from engines.artifacts.adapter_folder import ADAPTER_CONFIG, BASE_JSON, is_adapter
from engines.artifacts.manifest import ManifestError, manifest_sha256
from engines.artifacts.sharded import refuse_shards
from engines.artifacts.weight_types import refuse_whole_numbers
from engines.json_text import read_object
from exporters.lora.settings import other_features
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, printable, shown
from recipes.stages.adapter.fields import ALL_LINEAR
from recipes.stages.adapter.patterns import is_pattern
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneFields, FinetuneStage
from recipes.stages.merge import MergeStage

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")


def loads_in_transformers(stage: StageFields) -> bool:
    """Whether the stage's engine loads its `model` in transformers, with the tokenizer beside it."""
    return isinstance(stage, FinetuneFields | EvaluateStage)


def lost_in_four_bits(loaded: LoadedRecipe) -> Iterator[str]:
    """What to know of each stage that loads, in 4 bits, the model of a merge that has rounded its base to 4 bits.

    The merge has moved the weights by less than half a step of NF4, so a second rounding moves nearly all of them back.
    """
    rounded = {
        stage.name: stage.base_rounding
        for stage in loaded.recipe.stage
        if isinstance(stage, MergeStage) and stage.base_rounding != "none"
    }
    for stage in loaded.recipe.stage:
        if isinstance(stage, FinetuneStage) and stage.load_in_4bit and stage.model in rounded:
            yield (
                f"{stage.name}.load_in_4bit — rounds {stage.model} to 4 bits again, and base_rounding = "
                f"{rounded[stage.model]} has left its weights less than half a step from 4-bit values: nearly all"
                " that the merge added is lost, and the stage trains over the model before it; set it to false"
            )


def check_base(folder: Path, stage: StageFields) -> None:
    """Refuse a folder that the engine of a finetune or an evaluate stage could not use.

    Raises:
        OperatorError: it is not a folder, is an adapter where a model is needed, is quantized, or lacks files.
    """
    if not folder.is_dir():
        raise OperatorError(f"{printable(str(folder), 400)} is not a folder", "give the folder of a model")
    if is_adapter(folder):
        _check_adapter(folder, stage)
        return
    if not (folder / "config.json").is_file():
        raise OperatorError(
            f"{printable(str(folder), 400)} has no config.json, so it is not a model folder",
            "give a folder as save_pretrained writes it",
        )
    refuse_shards(folder)
    config = read_object(folder / "config.json")
    method = quantization_of(config)
    if method and isinstance(stage, FinetuneFields):
        raise OperatorError(
            f"{printable(str(folder), 400)} contains quantized weights ({method}), which cannot be trained",
            "use the 16-bit base model that they were made from",
        )
    if not any(True for pattern in _WEIGHTS for _ in folder.glob(pattern)):
        raise OperatorError(
            f"{printable(str(folder), 400)} has no weights: no .safetensors file", "copy the whole model folder"
        )
    refuse_whole_numbers(folder, tensor_types(folder))
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise OperatorError(
            f"{printable(str(folder), 400)} has no tokenizer: no tokenizer.json", "copy the whole model folder"
        )


def quantization_of(config: dict[str, Any]) -> str:
    """The method that quantized a model's weights, from its config.json; empty for weights of 16 or 32 bits."""
    settings = config.get("quantization_config")
    if not settings:
        return ""
    method = settings.get("quant_method", "unknown method") if isinstance(settings, dict) else "unknown method"
    return printable(str(method), 40)


def _check_adapter(folder: Path, stage: StageFields) -> None:
    if not isinstance(stage, FinetuneFields):
        return
    named = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    base = f" ({printable(str(named), 200)})" if isinstance(named, str) and named else ""
    raise OperatorError(
        f"{printable(str(folder), 400)} is an adapter, and model needs a full model",
        f"merge it first: cockpit merge {printable(str(folder), 400)}; or train the adapter further: set model to its"
        f" base{base} and start_from to this folder",
    )


SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias")
"""Fields that decide the shapes and the scale of an adapter, as adapter_config.json names them too."""
_WITHOUT = {"use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none"}
"""What an adapter has whose settings do not name the field, as those of older versions of PEFT."""
_FIT_PLAIN = "name a plain LoRA adapter; or merge this one with PEFT, and set model to the merged folder"
_FIT = "give the stage the values of that training, or leave start_from out"


def start_problems(loaded: LoadedRecipe) -> list[Problem]:
    """What is wrong with the adapters and models that stages start from, each at its line."""
    by_name = {stage.name: stage for stage in loaded.recipe.stage}
    found = []
    for stage in loaded.recipe.stage:
        given = loaded.graph.inputs.get(stage.name, {}).get("start_from")
        if given is None or not isinstance(stage, FinetuneFields):
            continue
        first = by_name.get(given.name)
        try:
            if given.path is not None and given.path.is_dir():
                problems = list(_of_folder(loaded, stage, given.path))
            elif isinstance(stage, FinetuneStage) and isinstance(first, FinetuneStage) and not first.takes_from_base:
                problems = list(_differences(stage, first.model_dump(mode="json")))
            else:
                problems = []
        except OperatorError as error:
            problems = [(error.message, error.hint)]
        line = loaded.line_of(stage.name, "start_from")
        found += [Problem(loaded.path, line, f"{stage.name}.start_from", what, hint=hint) for what, hint in problems]
    return found


def _of_folder(loaded: LoadedRecipe, stage: FinetuneFields, folder: Path) -> Iterator[tuple[str, str]]:
    adapter = is_adapter(folder)
    if adapter != isinstance(stage, FinetuneStage):
        there, here = ("an adapter", "all weights") if adapter else ("not an adapter", "an adapter")
        yield f"{printable(str(folder), 300)} is {there}, and this stage trains {here}", "name a folder of that kind"
        return
    if not isinstance(stage, FinetuneStage):
        return
    config = read_object(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        yield f"an adapter of another kind; got {shown(kind)}; allowed: LORA", "name a LoRA adapter"
        return
    for name, value, _ in other_features(config):
        what = f"{printable(name, 60)} is {shown(value)}"
        yield f"the adapter is more than LoRA, and the training would not continue that: {what}", _FIT_PLAIN
    if not stage.takes_from_base:  # such an adapter is written with twice its rank, and the engine refuses the start
        yield from _differences(stage, config)
    model = loaded.graph.inputs[stage.name].get("model")
    if model is not None and model.path is not None and (folder / BASE_JSON).is_file():
        yield from _another_base(read_object(folder / BASE_JSON), model.path)


def _differences(stage: FinetuneStage, other: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """In what an adapter's settings differ from a stage's."""
    fields = stage.model_dump(mode="json")
    settings = {name: other[name] if other.get(name) is not None else _WITHOUT.get(name) for name in SETTINGS}
    wrong = [
        f"{name} is {shown(value)}, not {shown(fields[name])}"
        for name, value in settings.items()
        if value is not None and value != fields[name]
    ]
    there, here = _last_parts(other.get("target_modules")), _last_parts(stage.target_modules)
    if there and here and there != here:
        wrong.append(f"target_modules is {', '.join(sorted(there))}, not {', '.join(sorted(here))}")
    there, here = _last_parts(other.get("modules_to_save")), _last_parts(stage.modules_to_save)
    if there != here:
        shown_parts = (", ".join(sorted(parts)) or "empty" for parts in (there, here))
        wrong.append("modules_to_save is {}, not {}".format(*shown_parts))
    if wrong:
        yield f"the adapter does not fit: {'; '.join(wrong)}", _FIT


def _last_parts(targets: Any) -> set[str]:
    """The last parts of the names of layers; empty for a word or a pattern that stands for names of a model."""
    names = targets if isinstance(targets, list) else []
    if any(not isinstance(name, str) or name == ALL_LINEAR or is_pattern(name) for name in names):
        return set()
    return {printable(name, 60).rpartition(".")[2] for name in names}


def _another_base(record: Mapping[str, Any], model: Path) -> Iterator[tuple[str, str]]:
    recorded = record.get("manifest_sha256")
    try:
        here = manifest_sha256(model)
    except (ManifestError, OSError):
        return  # a folder of another program: the engine compares its contents
    if record.get("method") == "manifest" and isinstance(recorded, str) and recorded != here:
        what = f"an adapter of another base model than {printable(str(model), 300)}"
        yield what, "name the base model that it was trained on, or leave start_from out"
