"""Check the folder of a model that a stage will load in transformers, from the names of its files and config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, is_adapter
from engines.json_text import read_object
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneFields

_WEIGHTS = ("*.safetensors", "*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")


def loads_in_transformers(stage: StageFields) -> bool:
    """Whether the stage's engine loads its `model` in transformers, with the tokenizer beside it."""
    return isinstance(stage, FinetuneFields | EvaluateStage)


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
