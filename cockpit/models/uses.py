"""What can be done with a model, from the tables that the stages themselves check a model with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cockpit.planning.base_check import check_base
from engines.llama.gguf_file import GgufFile
from exporters.hf_model.architectures import architecture_of
from exporters.hf_model.model_config import check_counts, complete_config
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import EVALUATE, EvaluateStage
from recipes.stages.export import EXPORT
from recipes.stages.finetune import FINETUNE, FinetuneStage

QLORA = "qlora"
USES = (FINETUNE.kind, QLORA, EXPORT.kind, EVALUATE.kind)
_ENCODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Ends of class names of models that do not generate text."""
_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def uses_of_folder(place: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Each use of a model folder, with the reason against it; an empty reason means that it can be done."""
    given = dict(config)
    trained = _refused(place, given, FinetuneStage(name="x", model="x", data="x"))
    return {
        FINETUNE.kind: trained,
        QLORA: trained,
        EXPORT.kind: _export(place, given),
        EVALUATE.kind: _refused(place, given, EvaluateStage(name="x", model="x", data="x")),
    }


def uses_of_adapter(place: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Each use of an adapter folder."""
    kind = config.get("peft_type", "LORA")
    other = "" if kind == "LORA" else f"a {printable(str(kind), 20)} adapter; only LoRA adapters can be merged"
    weights = "" if next(place.glob("adapter_model.*"), None) else "it has no weights"
    further = "an adapter: name its base as model, and this folder as start_from"
    return {FINETUNE.kind: further, QLORA: further, EXPORT.kind: other or weights, EVALUATE.kind: weights}


def uses_of_file(file: GgufFile, *, adapter: bool) -> dict[str, str]:
    """Each use of a GGUF file."""
    trained = "GGUF files cannot be trained; use the model folder"
    alone = "an adapter: give it as --adapter with the file of its base" if adapter else ""
    unknown = [tensor.name for tensor in file.tensors.values() if tensor.kind is None]
    odd = f"tensor {printable(unknown[0], 60)} has a type that Cockpit does not know" if unknown else ""
    return {FINETUNE.kind: trained, QLORA: trained, EXPORT.kind: alone or odd, EVALUATE.kind: alone}


def _refused(place: Path, config: dict[str, Any], stage: FinetuneStage | EvaluateStage) -> str:
    name = next(iter(config.get("architectures") or []), "")
    if isinstance(name, str) and name.endswith(_ENCODERS):
        return f"{printable(name, 60)} does not generate text"
    if isinstance(name, str) and name and not name.endswith(_GENERATES):
        return f"{printable(name, 60)} is not the class of a model that generates text"
    if "auto_map" in config and not _is_known(config):
        return "it needs code of its own, which Cockpit does not run"

    def check() -> None:
        check_counts(place, config)
        check_base(place, stage)

    return _why(check)


def _is_known(config: Mapping[str, Any]) -> bool:
    """Whether a class of transformers has the name, so that the folder's own code is not needed."""
    name = next(iter(config.get("architectures") or []), "")
    return isinstance(name, str) and not any(
        isinstance(value, str) and value.rpartition(".")[2] == name for value in dict(config["auto_map"]).values()
    )


def _export(place: Path, config: dict[str, Any]) -> str:
    if not next(place.glob("*.safetensors"), None):
        return "its weights are not safetensors files"
    return _why(lambda: architecture_of(place, complete_config(place, config)))


def _why(check: Callable[[], object]) -> str:
    """The message of what a check refuses, without the path, which the list has beside it; empty if it passes."""
    try:
        check()
    except OperatorError as error:
        return printable(error.message.splitlines()[0], 300)
    return ""
