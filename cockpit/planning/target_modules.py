"""Check the names of layers in a stage's fields against the model, before a run is created.

The names of a model folder's layers are those of its matrices in the headers of its safetensors files. Matrices of
experts are no layers: transformers joins them when it loads a model with one stack of layers. For a model of a hub, the
engine checks the names when it has loaded the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cockpit.planning.models import tensor_shapes
from cockpit.planning.stages import OUTPUT_HEAD, base_of, linear_layers, model_folder
from engines.artifacts.adapter_folder import is_adapter
from recipes.graph import Graph
from recipes.problems import closest, printable
from recipes.stages.adapter.fields import ALL_LINEAR, JOINED, JOINED_HINT
from recipes.stages.adapter.patterns import is_pattern
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneStage
from recipes.stages.pretrain import PretrainStage

_LISTED = 20
_EMBEDDINGS = re.compile(r"(^|[._])(embed_tokens|embed_positions|word_embeddings|embed_in|wte|wpe)$")
_EXPERT = re.compile(r"\.experts\.\d+\.")


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
    """The entries of `target_modules`, `modules_to_save` and `llm_int8_skip_modules` that no layer of the model has.

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
    shapes = {} if folder is None or is_adapter(folder) else tensor_shapes(folder)  # an adapter is refused as a whole
    joined = dict.fromkeys(f"{name[: found.start()]}.experts" for name in shapes if (found := _EXPERT.search(name)))
    shapes = {name: shape for name, shape in shapes.items() if not _EXPERT.search(name)}
    matrices = [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2
    ]
    if not matrices:
        return _Layers([], [])
    linear = [*(name for name in matrices if not _EMBEDDINGS.search(name)), OUTPUT_HEAD]
    every = dict.fromkeys([*(name.rpartition(".")[0] for name in shapes), OUTPUT_HEAD])
    return _Layers(linear, list(every), tuple(joined))


def _hint(name: str, layers: list[str], otherwise: str) -> str:
    known = sorted({layer.rpartition(".")[2] for layer in layers})
    near = closest(name, known)
    listed = ", ".join(known[:_LISTED]) + (", …" if len(known) > _LISTED else "")
    return near or f"the model has {printable(listed, 400)}{otherwise}"
