"""Folders that a stage reads its model or data from. Nothing here uses the network."""

from __future__ import annotations

from pathlib import Path

from engines.context import Input
from recipes.problems import OperatorError


def input_folder(given: Input) -> Path:
    """The folder of an input; that of a hub id is in the local cache.

    Raises:
        OperatorError: it is a hub id that was never fetched, or the folder is not there.
    """
    if given.path is None:
        return cached_folder(given.name)
    if not given.path.is_dir():
        raise OperatorError(f"{given.field}: {given.path} is not a folder", "give the folder itself, or a stage's name")
    return given.path


def cached_folder(hub_id: str) -> Path:
    """Where a model of the hub is on this machine.

    Models are loaded from this folder, not by their id: `from_pretrained(id, local_files_only=True)` still asks the
    network whether the model is an adapter.

    Raises:
        OperatorError: it was never fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"{hub_id!r} is not in the local Hugging Face cache",
            f"fetch it first with: hf download {hub_id}; engines never use the network",
        ) from error
