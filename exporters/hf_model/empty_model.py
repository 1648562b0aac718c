"""Builds a transformers model without its weights, and maps its parameters to the tensors of a checkpoint."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.json_text import read_object
from exporters.hf_model.architectures import known_architecture
from exporters.hf_model.tensor_files import Weights

LAYER_LISTS = ("layers", "h", "blocks")
"""What transformers calls the list of a model's layers."""
_SIZES = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "vocab_size")


def build_empty(folder: Path) -> Any:
    """The causal language model of a folder's config in evaluation mode; its parameters are on the meta device and take
    no memory. Buffers, such as rotary frequencies, are real.

    Families whose range between YaRN's boundaries may be unrounded get the rounded one, which llama.cpp computes.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config(decoder=True)
    row = known_architecture(read_object(folder / "config.json"))
    if row is not None and row.rounded_yarn and isinstance(config.rope_parameters, dict):
        config.rope_parameters = {name: value for name, value in config.rope_parameters.items() if name != "truncate"}
    with no_init_weights(), _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    return model


def common_settings(folder: Path) -> dict[str, Any]:
    """The settings of a model's language part, each size also under the name that most families give it.

    GPT-2, for example, writes n_embd for hidden_size. A size that the family does not have is missing.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config(decoder=True)
    given = {name: getattr(config, name, None) for name in _SIZES}
    return {**config.to_dict(), **{name: value for name, value in given.items() if value is not None}}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move every parameter to the meta device when a module registers it; only one has memory at a time."""
    import torch

    register = torch.nn.Module.register_parameter

    def on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        given = None if parameter is None else torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, given)

    torch.nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def names_in_text_model(folder: Path, weights: Weights) -> dict[str, str]:
    """The text model's name of each tensor of a folder; a multimodal model's folder has others."""
    family = known_architecture(read_object(folder / "config.json"))
    if family is None:
        return {}
    own = {name: family.own_name(name) for name in weights.tensors if family.left_out_of(name) is None}
    inside = {name: f"model.{found.removeprefix(family.prefix)}" for name, found in own.items()}
    return {
        name: inside[name] if found.startswith(family.prefix) else "lm_head.weight" if found == family.head else found
        for name, found in own.items()
    }


def adapter_names_in_text_model(folder: Path) -> dict[str, str] | None:
    """PEFT's `key_mapping`: the text model's beginning of a name by a pattern for an adapter's; None if none differ."""
    family = known_architecture(read_object(folder / "config.json"))
    if family is None or not family.stored:
        return None
    given = [*family.stored, (family.prefix, family.prefix)]
    return {
        f"^{re.escape(old)}": f"model.{new.removeprefix(family.prefix)}"
        for old, new in given
        if new.startswith(family.prefix)
    }


@dataclass(frozen=True)
class _Fused:
    """Parameters that transformers computes from several tensors of a checkpoint, such as stacked experts."""

    converter: Any
    tensors: list[tuple[str, str]]
    """Names in the checkpoint, each with the converter's pattern for it."""


class ParameterSources:
    """Where each parameter of a model comes from, by transformers' own rules of loading."""

    def __init__(self, model: Any, weights: Weights, renamed: Mapping[str, str]) -> None:
        """Map every tensor.

        Args:
            model: from `build_empty`.
            weights: the checkpoint's tensors.
            renamed: checkpoint names that differ from the text model's, such as those of a multimodal model, with the
                text model's names.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        places = dict(model.named_parameters(remove_duplicate=False))
        self._weights = weights
        self._model = model
        self._places = frozenset(places)
        self._plain: dict[str, str] = {}
        self._fused: dict[str, _Fused] = {}
        for name in sorted(weights.tensors, key=dot_natural_key):
            given = renamed.get(name, name)
            if given in places:
                self._plain[given] = name
                continue
            target, pattern = rename_source_key(given, renamings, converters, model.base_model_prefix, places)
            if pattern is None:
                self._plain[target] = name
            else:
                fused = self._fused.setdefault(target, _Fused(copy.deepcopy(by_pattern[pattern]), []))
                fused.tensors.append((name, pattern))

    def checkpoint_name(self, parameter: str) -> str | None:
        """The tensor that a parameter equals; None for a parameter that is computed from several, or is missing."""
        return self._plain.get(parameter)

    def parameter_of(self, tensor: str) -> str | None:
        """The parameter that a tensor of the checkpoint, or the first whose name begins so, is or is a part of."""
        plain = (target for target, name in self._plain.items() if name.startswith(tensor))
        fused = (
            target for target, found in self._fused.items() for name, _ in found.tensors if name.startswith(tensor)
        )
        return next(plain, None) or next(fused, None)

    def has(self, parameter: str) -> bool:
        """Whether a parameter is the model's own, not an adapter's."""
        return parameter in self._places

    def read(self, parameters: list[str]) -> dict[str, Any]:
        """Values of parameters as float32 torch tensors.

        Raises:
            AssertionError: the checkpoint lacks one of them.
        """
        import torch

        found: dict[str, Any] = {}
        for name in parameters:
            if name in self._plain:
                found[name] = torch.from_numpy(self._weights.read(self._plain[name]))
        wanted = set(parameters) - set(found)
        for target, fused in self._fused.items():
            if not wanted:
                break
            if target in wanted or _same_place(target, wanted):
                found |= {name: value for name, value in self._convert(target, fused).items() if name in wanted}
                wanted -= set(found)
        if wanted:
            raise AssertionError(f"no values for {sorted(wanted)[:3]}")
        return found

    def _convert(self, target: str, fused: _Fused) -> dict[str, Any]:
        import torch

        converter = copy.deepcopy(fused.converter)
        for name, pattern in fused.tensors:
            converter.add_tensor(target, name, pattern, torch.from_numpy(self._weights.read(name)))
        made = converter.convert(target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _same_place(target: str, wanted: set[str]) -> bool:
    """Whether a converter's result may contain a wanted parameter: both are in the same module."""
    module = target.rpartition(".")[0].removesuffix(".*")
    return any(name.startswith(module) for name in wanted)
