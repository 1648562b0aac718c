"""Folders from which a stage reads its model or data. This module does not use the network."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from engines.context import Input
from engines.inputs.hub_cache import divided, hub_cache
from engines.json_text import read_object
from recipes.problems import OperatorError, printable
from recipes.stages.decoder.model_types import LINEAR, TERNARY


def input_folder(given: Input) -> Path:
    """The folder of an input; the folder of a hub id is in the local cache.

    Raises:
        OperatorError: the hub id is not in the cache, or the folder does not exist.
    """
    if given.path is None:
        return cached_folder(given.name)
    if not given.path.is_dir():
        raise OperatorError(f"{given.field}: {given.path} is not a folder", "give a folder, or a stage's name")
    return given.path


def refuse_missing_weights(folder: Path, missing: Iterable[str]) -> None:
    """Refuse a model of whose weights transformers found some in no file: it makes random ones, and only logs it. And
    refuse a checkpoint whose weights compute as others.

    Args:
        folder: the model's folder.
        missing: `missing_keys` of transformers' loading information.

    Raises:
        OperatorError: there are such weights, or they are weights before a rounding.
    """
    config = folder / "config.json"
    if config.is_file() and read_object(config).get(LINEAR) == TERNARY:
        raise OperatorError(
            f"model — {folder} has the weights of a training with {LINEAR} = {TERNARY} before their rounding",
            "name the finished model of that stage",
        )
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise OperatorError(
            f"model — {folder} is not a whole causal language model: no file has"
            f" {printable(', '.join(names[:3]), 300)}{more}",
            "name a model that generates text, with all its files; a classifier or a reward model has another head",
        )


def refuse_other_shapes(folder: Path, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Refuse a model with weights of other shapes than its config.json says.

    Args:
        folder: the model's folder.
        mismatched: `mismatched_keys` of transformers' loading information: name, shape in the file, shape of the model.

    Raises:
        OperatorError: there are such weights.
    """
    found = sorted((name, list(there), list(here)) for name, there, here in mismatched)
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        listed = "; ".join(f"{printable(name, 200)} is {there}, not {here}" for name, there, here in found[:3])
        raise OperatorError(
            f"model — the weights in {folder} have other shapes than its config.json says: {listed}{more}",
            "copy the whole model folder again",
        )


def tensor_types(folder: Path) -> dict[str, str]:
    """The types of the tensors in a folder's safetensors files, as their headers name them: BF16, I8, …"""
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "np") as tensors:
            found |= {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return found


def not_loaded(folder: Path, what: str, error: Exception) -> OperatorError:
    """What the operator reads when a library cannot load something from a folder: these raise anything for a file that
    is damaged or not what it should be.

    Args:
        folder: the folder.
        what: what it should have, with its article.
        error: what the library raised.
    """
    named = printable(str(folder), 400)
    if type(error).__name__ == "UnpicklingError":  # torch's own words advise the operator to run the code in the file
        return OperatorError(
            f"cannot load {what} from {named}: its weights are a pickle that has more than tensors, or is damaged",
            "use weights as safetensors: a pickle can run code",
        )
    lines = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, OSError | ValueError) and lines:
        detail = lines[0]
    return OperatorError(
        f"cannot load {what} from {named}: {printable(detail, 300)}",
        "give a folder that save_pretrained wrote; copy it again whole if it is one",
    )


def cached_folder(hub_id: str) -> Path:
    """The folder of a hub model in the local cache.

    Models are loaded from this folder, not by their id: `from_pretrained(id, local_files_only=True)` still uses the
    network to find out whether the model is an adapter.

    Raises:
        OperatorError: the model is not in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        name, revision = divided(hub_id)
        return Path(snapshot_download(name, revision=revision, cache_dir=hub_cache(), local_files_only=True))
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{hub_id!r} is not in the local Hugging Face cache",
            f"engines do not use the network; download it first: cockpit pull {hub_id}",
        ) from error
