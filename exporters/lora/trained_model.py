"""The model that a training over a 4-bit base has trained, found again from an adapter or from a merged model.

A merged model or a GGUF file is judged against it: its linear layers have the values that the 4-bit weights stand for,
plus the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import is_adapter
from engines.artifacts.custody import ancestors, content_sha256, parent_ids
from engines.artifacts.manifest import ManifestError, manifest_sha256, read_manifest
from engines.inputs.hashing import hashes_of
from engines.inputs.hub_cache import cached_model
from engines.json_text import read_object
from engines.run_dir.moved_runs import place_now
from exporters.hf_model.model_folder import read_config
from exporters.lora.base_check import quantization_of_base
from exporters.lora.merge import open_trained
from exporters.lora.merged_weights import MergedWeights
from recipes.problems import OperatorError, printable
from recipes.stages.merge import MERGE

MERGE_FILE = "parity.json"
"""The file of a merged model with its comparison."""
PARENTS = 2
"""Of the merge of one adapter: the base model and the adapter."""
TRAINED_OVER = "trained_over"
"""The key of a merge's record with how the training loaded its base in 4 bits."""


@dataclass(frozen=True)
class TrainedModel:
    """A 16- or 32-bit base model, the adapter that was trained over its 4-bit copy, and how that copy was made.

    `untie`: the model has a head of its own, and its base has not.
    """

    base: Path
    adapter: Path
    quantization: Mapping[str, Any]
    untie: bool = False

    def weights(self) -> MergedWeights:
        """Its tensors, float32.

        Raises:
            OperatorError: base model and adapter cannot be read.
        """
        return open_trained(self.base, self.adapter, self.quantization, untie=self.untie)


def trained_with(base: Path, adapter: Path) -> TrainedModel | None:
    """The model that the training of an adapter has trained; None if its base was not quantized."""
    quantization = quantization_of_base(adapter)
    return None if quantization is None else TrainedModel(base, adapter, quantization)


def trained_before_merge(merged: Path) -> TrainedModel | None:
    """The model whose adapter a merge stage merged, by the manifest and the record of the merged folder; None for a
    model that no merge made, or whose base was not quantized in the training.

    Raises:
        OperatorError: the model was merged from such an adapter and is not the trained model in 16 bits, or its base
            model or its adapter is gone or has changed.
    """
    record = merged / MERGE_FILE
    found = read_object(record).get(TRAINED_OVER) if record.is_file() else None
    try:
        manifest = read_manifest(merged)
    except ManifestError as error:
        if isinstance(found, dict):
            raise OperatorError(f"{merged} has no manifest, which would name base model and adapter") from error
        return None
    links = {str(link["id"]): link for link in ancestors(manifest)}
    parents = [links[name] for name in parent_ids(manifest) if name in links]
    if manifest.get("kind") != MERGE.kind:
        return None
    if not isinstance(found, dict):
        if any(quantization_of_base(_place(link, merged)) for link in parents):
            raise OperatorError("only the merge of one adapter with weight 1 and parity_positions above 0 can be")
        return None
    if len(parents) != PARENTS:
        raise OperatorError(f"its manifest names {len(parents)} parents; a merge of one adapter has {PARENTS}")
    adapter, base = sorted((_folder_of(link, merged) for link in parents), key=lambda folder: not is_adapter(folder))
    tied = [read_config(folder)["tie_word_embeddings"] for folder in (base, merged)]
    return TrainedModel(base, adapter, found, untie=tied == [True, False])


def _place(link: Mapping[str, Any], near: Path) -> Path:
    return place_now(Path(str(link.get("folder", ""))), near)


def _folder_of(link: Mapping[str, Any], near: Path) -> Path:
    """The folder of a link whose content is proven to be the recorded one; a model of a hub is known by its name."""
    if link["kind"] == "hub":
        cached = cached_model(str(link.get("folder", "")))
        if cached is None:
            raise OperatorError(f"{printable(str(link.get('folder')), 300)} is not in the local hub cache")
        return cached
    folder = _place(link, near)
    if not folder.is_dir():
        raise OperatorError(f"{printable(str(folder), 300)} does not exist")
    if not _is_recorded(folder, link):
        raise OperatorError(f"{printable(str(folder), 300)} is not what the merge read")
    return folder


def _is_recorded(folder: Path, link: Mapping[str, Any]) -> bool:
    if link["method"] == "manifest":
        return _manifest_of(folder) == link["id"]
    files = link.get("files") or []
    if files:
        hashes = hashes_of([folder / entry["path"] for entry in files])
        return all(found.sha256 == entry["sha256"] for found, entry in zip(hashes, files, strict=True))
    try:
        return link["method"] == "content" and content_sha256(folder) == link["id"]
    except OSError:
        return False


def _manifest_of(folder: Path) -> str:
    try:
        return manifest_sha256(folder)
    except ManifestError:
        return ""
