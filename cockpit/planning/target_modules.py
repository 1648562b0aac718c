"""Check the names in `target_modules` against the model, before a run is created.

The names of a model folder's layers are those of its matrices in the headers of its safetensors files. Matrices of
experts are not suggested: transformers joins them when it loads a model. For a model of a hub, the engine checks the
names when it has loaded the model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from cockpit.planning.models import tensor_shapes
from cockpit.planning.stages import OUTPUT_HEAD, base_of, linear_layers, model_folder
from engines.artifacts.adapter_folder import is_adapter
from recipes.graph import Graph
from recipes.problems import closest, printable
from recipes.stages.fields import StageFields
from recipes.stages.finetune import ALL_LINEAR, FinetuneStage

_LISTED = 20
_EMBEDDINGS = re.compile(r"(^|[._])(embed_tokens|embed_positions|word_embeddings|embed_in|wte|wpe)$")
_EXPERT = re.compile(r"\.experts\.\d+\.")


def unknown_targets(
    stage: FinetuneStage, by_name: Mapping[str, StageFields], graph: Graph
) -> list[tuple[int, str, str]]:
    """The entries of `target_modules` that no layer of the model has: position, name, and a hint.

    Empty also for a model whose layers are not known yet.
    """
    base = base_of(stage, by_name)
    layers = list(linear_layers(base, None)) if base is not None else _of_folder(model_folder(stage, by_name, graph))
    if not layers:
        return []
    return [
        (number, name, _hint(name, layers))
        for number, name in enumerate(stage.target_modules)
        if name != ALL_LINEAR and not any(f".{layer}".endswith(f".{name}") for layer in layers)
    ]


def _of_folder(folder: Path | None) -> list[str]:
    shapes = {} if folder is None or is_adapter(folder) else tensor_shapes(folder)  # an adapter is refused as a whole
    found = [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2
    ]
    return [*(name for name in found if not _EMBEDDINGS.search(name)), OUTPUT_HEAD] if found else []


def _hint(name: str, layers: list[str]) -> str:
    known = sorted({layer.rpartition(".")[2] for layer in layers if not _EXPERT.search(layer)})
    near = closest(name, known)
    listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
    return near or f"the model has {printable(listed, 400)}, or use {ALL_LINEAR}"
