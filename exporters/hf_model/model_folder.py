"""A model in a folder, as Hugging Face lays it out: its config, its tokenizer's files, its weights by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engines.context import Input
from engines.files import refuse_special_files
from engines.json_text import read_object
from exporters.hf_model.architectures import language_settings
from exporters.hf_model.model_config import complete_config
from exporters.hf_model.tensor_files import SafetensorsFolder
from recipes.problems import OperatorError, printable

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def local_folder(item: Input) -> Path:
    """The input's folder; a hub id is fetched, or found in the cache.

    Raises:
        OperatorError: there is no such model here or on the hub.
    """
    if item.path is not None:
        return item.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
    try:
        return Path(snapshot_download(item.name, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise OperatorError(
            f"{item.field} — {printable(item.name)} is not in the local hub cache and cannot be fetched: "
            f"{printable(str(error), 200)}",
            "download it where there is a network, or name a folder",
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, with `tie_word_embeddings` made explicit.

    Raises:
        OperatorError: it is missing, names a quantized model, or has counts that no model has; or a pipe or device is
            in the folder.
    """
    refuse_special_files(folder)
    return complete_config(folder, read_object(folder / "config.json"))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of the model's language part, which config.json has at its top or in a table of their own.

    Raises:
        OperatorError: as `read_config`.
    """
    return language_settings(read_config(folder))


def open_weights(folder: Path) -> SafetensorsFolder:
    """The model's tensors.

    Raises:
        OperatorError: there are none, or they are not 16- or 32-bit floats.
    """
    weights = SafetensorsFolder(folder)
    for info in weights.tensors.values():
        if info.dtype not in ("F32", "F16", "BF16"):
            raise OperatorError(
                f"{folder}: {printable(info.name)} has type {info.dtype}; allowed F32, F16, BF16",
                "name the original 16- or 32-bit model, not a quantized copy",
            )
    return weights


def copy_tokenizer(sources: list[Path], target: Path) -> list[str]:
    """Copy the tokenizer's files, each from the first folder that has it.

    Returns:
        Their names.
    """
    copied = []
    for name in TOKENIZER_FILES:
        source = next((folder / name for folder in sources if (folder / name).is_file()), None)
        if source is not None:
            shutil.copyfile(source, target / name)
            copied.append(name)
    return copied
