"""A model folder in Hugging Face's layout: config, tokenizer files, weights by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.context import Input
from engines.files import refuse_special_files
from engines.inputs.hub_cache import divided
from engines.json_text import read_object
from exporters.hf_model.architectures import language_settings
from exporters.hf_model.model_card import CARD, LICENSE_FILES
from exporters.hf_model.model_config import complete_config
from exporters.hf_model.tensor_files import SafetensorsFolder
from recipes.problems import OperatorError, printable


def local_folder(item: Input) -> Path:
    """The input's folder; a model of the hub is downloaded unless the cache has it.

    Raises:
        OperatorError: the model is not in the cache and cannot be downloaded.
    """
    if item.path is not None:
        return item.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", CARD, *LICENSE_FILES]
    try:
        name, revision = divided(item.name)
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise OperatorError(
            f"{item.field} — {printable(item.name)} is not in the local hub cache and could not be downloaded: "
            f"{printable(str(error), 200)}",
            "download it on a machine with network access, or name a folder",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        OperatorError: config.json is missing, describes a quantized model or has a count out of range, or the folder
            contains a pipe or device.
    """
    refuse_special_files(folder)
    return complete_config(folder, read_object(folder / "config.json"))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the model's language part, from the top level of config.json or its nested table.

    Raises:
        OperatorError: as `read_config`.
    """
    return language_settings(read_config(folder))


def open_weights(folder: Path) -> SafetensorsFolder:
    """The model's tensors.

    Raises:
        OperatorError: the folder has no weights, or they are not 16- or 32-bit floats.
    """
    weights = SafetensorsFolder(folder)
    for info in weights.tensors.values():
        if info.dtype not in ("F32", "F16", "BF16"):
            raise OperatorError(
                f"{folder}: {printable(info.name)} has type {info.dtype}; allowed F32, F16, BF16",
                "use the original 16- or 32-bit model, not a quantized copy",
            )
    return weights
