"""What the model of an export was made from: its base model, and the runs that trained it, by the manifests of its
inputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifacts.custody import ancestors, parent_ids
from engines.artifacts.manifest import ManifestError, read_manifest
from engines.context import Input, StageContext
from engines.inputs.hub_cache import divided
from exporters.gguf.file_names import ModelName, file_part, name_of
from exporters.hf_model.model_card import read_card
from recipes.stages.dpo import DPO
from recipes.stages.export import ExportStage
from recipes.stages.finetune import FINETUNE
from recipes.stages.pretrain import PRETRAIN

_STAMP = re.compile(r"^\d{8}-\d{4}-")
_CACHED = re.compile(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)")
"""The folder of a model in the hub's cache."""
_NAMELESS = re.compile(
    r"out|output|models?|adapters?|merged|final|latest|last|hf|(?:checkpoint|step)-\d+", re.IGNORECASE
)
"""Folder names that do not name a model; the folder above may."""
_TRAINS = (PRETRAIN.kind, FINETUNE.kind, DPO.kind)


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        base: the base model: a hub id, else a name.
        trained: the runs that trained it, by their ids without the time, and foreign adapters by their folders, older
            ones first.
        links: the links of custody of all inputs, older ones first, the inputs' own last.
        adapters: adapters of elsewhere, by their folders.
    """

    base: str
    trained: tuple[str, ...]
    links: tuple[Mapping[str, Any], ...]
    adapters: tuple[str, ...] = ()


def lineage_of(inputs: Mapping[str, Input]) -> Lineage:
    """The lineage of a merged or exported model, from the inputs `model`, `adapter` and `adapters[…]` of a stage.

    A GGUF adapter is a file of its own, so an export's `adapters` do not change the name of its model: leave them out.
    """
    model = inputs["model"]
    adapters = [item for field, item in inputs.items() if field.startswith("adapter")]
    links = [link for item in (model, *adapters) for link in _links(item)]
    base = _base(model)
    runs = [str(link["run"]) for link in links if link.get("kind") in _TRAINS and link.get("run")]
    trained = [without_time(run) for run in runs]
    foreign = [folder_name(item.path) for item in adapters if item.path is not None and not _links(item)]
    names = tuple(name for name in dict.fromkeys([*trained, *foreign]) if name != base)
    return Lineage(base, names, tuple(links), tuple(foreign))


def title_of(ctx: StageContext[ExportStage], folder: Path, parameters: int) -> ModelName:
    """The name of an export's model: the recipe's `file_name`, else its base model with the runs that trained it.

    Args:
        ctx: the stage's context.
        folder: the folder of its input `model`.
        parameters: the model's number of weights.
    """
    licence = read_card(folder).license
    if ctx.stage.file_name is not None:
        return ModelName(ctx.stage.file_name, license=licence)
    found = lineage_of({field: item for field, item in ctx.inputs.items() if not field.startswith("adapters[")})
    return name_of(found.base, parameters, found.trained, licence)


def folder_name(folder: Path) -> str:
    """The model's name in the path of its folder: that of the hub's cache, or the nearest folder with a name."""
    cached = hub_id(folder)
    if cached:
        return cached.rpartition("/")[2]
    names = [part for part in reversed(folder.absolute().parts) if part != folder.anchor]
    named = (name for name in names[:3] if not _NAMELESS.fullmatch(name) and file_part(name))
    return next(named, names[0] if names else "model")


def hub_id(folder: Path) -> str:
    """The hub id of a folder in the hub's cache, else empty."""
    found = next((match for part in folder.parts if (match := _CACHED.fullmatch(part))), None)
    return f"{found[1]}/{found[2]}" if found else ""


def without_time(run_id: str) -> str:
    """A run's id without the minute of its launch: the recipe's name, or the name that the operator gave."""
    return _STAMP.sub("", run_id)


def _links(item: Input) -> list[dict[str, Any]]:
    """The links of an input, its own last; empty for a folder without a manifest."""
    manifest = _manifest(item)
    if not manifest:
        return []
    known = {key: manifest[key] for key in ("run", "stage", "step") if isinstance(manifest.get(key), str | int)}
    own = {"id": item.manifest_sha256 or "", "folder": str(item.path), "parents": parent_ids(manifest), **known}
    return [*ancestors(manifest), {**own, "kind": _kind(item.path, manifest)}]


def _kind(folder: Path | None, manifest: Mapping[str, Any]) -> str:
    """The kind of a folder's stage. A checkpoint of an older version has none: a full model is one of a pretraining."""
    kind = manifest.get("kind", manifest.get("stage_kind"))
    if isinstance(kind, str):
        return kind
    return PRETRAIN.kind if folder is not None and (folder / "config.json").is_file() else FINETUNE.kind


def _base(model: Input) -> str:
    """Follow the first input of every stage, its model, to a folder of elsewhere or to the run that pretrained it."""
    if model.path is None:
        return divided(model.name)[0]
    links = _links(model)
    by_id = {str(link["id"]): link for link in links}
    for link in _back(links[-1], by_id) if links else ():
        if link["kind"] == PRETRAIN.kind and link.get("run"):
            return without_time(str(link["run"]))
        if link.get("method") in ("content", "name"):
            folder = str(link["folder"])
            return divided(folder)[0] if link["kind"] == "hub" else hub_id(Path(folder)) or folder_name(Path(folder))
    return hub_id(model.path) or folder_name(model.path)


def _back(link: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    seen: set[str] = set()
    current: Mapping[str, Any] | None = link
    while current is not None and str(current["id"]) not in seen:
        yield current
        seen.add(str(current["id"]))
        current = by_id.get(current["parents"][0]) if current["parents"] else None


def _manifest(item: Input) -> dict[str, Any]:
    if item.path is None:
        return {}
    try:
        return read_manifest(item.path)
    except ManifestError:
        return {}
