"""Check the names of layers in a stage's fields against the model, before a run is created.

The names of a model folder's layers are those of its matrices in the headers of its safetensors files. Matrices of
experts and of their router are no layers: transformers joins the ones when it loads a model with one stack of layers,
and computes the other by itself. For a model of a hub, the engine checks the names when it has loaded the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cockpit.planning.models import OUTPUT_HEAD, blocks_of_experts, is_of_experts, linear_shapes, tensor_shapes
from cockpit.planning.stages import base_of, linear_layers, model_folder
from engines.artifacts.adapter_folder import is_adapter
from recipes.graph import Graph
from recipes.problems import closest, printable
from recipes.stages.adapter.fields import ALL_LINEAR, JOINED, JOINED_HINT, numbers_of_layers
from recipes.stages.adapter.patterns import is_pattern
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneStage
from recipes.stages.pretrain import PretrainStage

_LISTED = 20
NO_SUCH_NUMBER = "no decoder layer of the model has this number"


@dataclass(frozen=True)
class UnknownLayer:
    """An entry of a field that no layer of the model has: its position or its key, and what to do.

    `reason` says why a layer that exists cannot be used.
    """

    field: str
    number: int | str
    name: str
    hint: str
    reason: str = ""

    @property
    def what(self) -> str:
        """What is wrong with the name."""
        kind = "layer with weights of its own" if self.field == "modules_to_save" else "linear layer"
        return self.reason or f"no {kind} of the model has this name"


@dataclass(frozen=True)
class _Layers:
    """Dotted names of a model's linear layers, of all its layers that have weights of their own, and of those that
    transformers joins from several tensors of the files."""

    linear: list[str]
    every: list[str]
    joined: tuple[str, ...] = ()


def unknown_layers(stage: FinetuneStage, by_name: Mapping[str, StageFields], graph: Graph) -> list[UnknownLayer]:
    """The entries of `target_modules`, `layers_to_transform`, `modules_to_save` and `llm_int8_skip_modules` that no
    layer of the model has.

    Empty also for a model whose layers are not known yet.
    """
    base = base_of(stage, by_name)
    layers = _of_stage(base) if base is not None else _of_folder(model_folder(stage, by_name, graph))
    if not layers.linear:
        return []
    found = _unknown("target_modules", stage.target_modules, layers.linear, f", or use {ALL_LINEAR}")
    selected = [name for name in layers.linear if stage.adapts(name, OUTPUT_HEAD)]
    if stage.pattern and not selected:
        found += [UnknownLayer("target_modules", 0, stage.pattern, _hint(stage.pattern, layers.linear, ""))]
    there = numbers_of_layers(layers.linear)
    found += [
        UnknownLayer("layers_to_transform", place, str(number), f"layers are counted from 0: {there}", NO_SUCH_NUMBER)
        for place, number in enumerate(stage.layers_to_transform)
        if number in stage.absent_layers(layers.linear)
    ]
    if selected:
        found += _without_a_layer("rank_pattern", stage.rank_pattern, selected)
        found += _without_a_layer("alpha_pattern", stage.alpha_pattern, selected)
    found += [
        UnknownLayer("modules_to_save", number, name, JOINED_HINT, JOINED)
        for number, name in enumerate(stage.modules_to_save)
        if _is_end(name, layers.joined)
    ]
    found += [
        one
        for one in _unknown("modules_to_save", stage.modules_to_save, layers.every)
        if not _is_end(one.name, layers.joined)
    ]
    if stage.load_in_4bit:
        found += _unknown("llm_int8_skip_modules", stage.llm_int8_skip_modules, layers.linear)
    return found


def _unknown(field: str, wanted: list[str], layers: list[str], otherwise: str = "") -> list[UnknownLayer]:
    return [
        UnknownLayer(field, number, name, _hint(name, layers, otherwise))
        for number, name in enumerate(wanted)
        if name != ALL_LINEAR and not is_pattern(name) and not _is_end(name, layers)
    ]


def _is_end(name: str, layers: Iterable[str]) -> bool:
    """Whether a name is the end of a layer's dotted name."""
    return any(f".{layer}".endswith(f".{name}") for layer in layers)


def _without_a_layer(field: str, patterns: Mapping[str, float], adapted: list[str]) -> list[UnknownLayer]:
    """The keys of a table that name no layer with an adapter."""
    return [
        UnknownLayer(field, key, key, _hint(key, adapted, ""))
        for key in patterns
        if not any(re.match(rf"(.*\.)?({key})$", layer) for layer in adapted)
    ]


def _of_stage(base: PretrainStage) -> _Layers:
    linear = list(linear_layers(base, None))
    norms = [f"model.layers.{n}.{name}" for n in range(base.num_hidden_layers) for name in base.decoder.norms]
    return _Layers(linear, [*linear, *norms, "model.norm", "model.embed_tokens"])


def _of_folder(folder: Path | None) -> _Layers:
    if folder is None or is_adapter(folder):  # an adapter is refused as a whole
        return _Layers([], [])
    matrices, shapes = list(linear_shapes(folder)), tensor_shapes(folder)
    if not matrices:
        return _Layers([], [])
    every = [name.rpartition(".")[0] for name in shapes if not is_of_experts(name)]
    joined = tuple(f"{block}.experts" for block in blocks_of_experts(shapes))
    return _Layers([*matrices, OUTPUT_HEAD], list(dict.fromkeys([*every, OUTPUT_HEAD])), joined)


def _hint(name: str, layers: list[str], otherwise: str) -> str:
    known = sorted({layer.rpartition(".")[2] for layer in layers})
    near = closest(name, known)
    listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
    return near or f"the model has {printable(listed, 400)}{otherwise}"
