"""Which layers PEFT adapts in a model whose experts transformers joins when it loads it.

The experts of such a model are parameters and no linear layers. PEFT still takes the names that they have in the files
(`gate_proj`, and all of them with `all-linear`) for experts and router, adapts those as parameters
(`target_parameters`), and leaves out linear layers of the same names. No merge reads such an adapter and no GGUF file
can have it, so the adapter of a stage stays with linear layers. PEFT also takes a regular expression apart into the
last parts of the names that it matches, and then adapts every layer of these names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from recipes.problems import OperatorError, printable
from recipes.stages.adapter.fields import JOINED, JOINED_HINT


def taken_for_experts(model: Any, names: Sequence[str]) -> list[str]:
    """The names, of `target_modules`, that PEFT takes for experts or a router of this model."""
    return [name for name in names if _is_taken(model, name)]


def is_taken_apart(model: Any, pattern: str) -> bool:
    """Whether PEFT replaces a regular expression by names, in this model."""
    return _converted(model, pattern).target_modules != pattern


def without_experts(model: Any, names: Sequence[str], warn: Callable[[str], None]) -> list[str]:
    """The names without those that PEFT takes for experts, of which it warns."""
    taken = taken_for_experts(model, names)
    if taken:
        warn(
            f"layers named {printable(', '.join(taken), 200)} get no adapter: PEFT takes these names for the model's"
            " experts, whose adapters cannot be merged"
        )
    return [name for name in names if name not in taken]


def refuse_experts(model: Any, names: Sequence[str]) -> None:
    """Refuse names that PEFT takes for experts.

    Raises:
        OperatorError: a name is one of theirs.
    """
    taken = taken_for_experts(model, names)
    if taken:
        raise OperatorError(
            f"target_modules — PEFT takes {printable(', '.join(taken), 200)} for the model's experts, and an adapter of"
            " experts cannot be merged",
            'name other linear layers, or set target_modules = "all-linear", which leaves the experts out',
        )


def refuse_joined(model: Any, names: Sequence[str]) -> None:
    """Refuse to train as a whole what transformers joins from several tensors of the files.

    Args:
        model: the base model.
        names: of `modules_to_save`, each the end of the dotted name of a layer.

    Raises:
        OperatorError: a name means such a layer.
    """
    joined = [f".{layer}" for layer in _joined_layers(model)]
    refused = [name for name in names if any(layer.endswith(f".{name}") for layer in joined)]
    if refused:
        raise OperatorError(f"modules_to_save — {printable(', '.join(refused), 200)}: {JOINED}", JOINED_HINT)


def _joined_layers(model: Any) -> list[str]:
    """Layers with a parameter that has no tensor of its own in the files."""
    rules = get_model_conversion_mapping(model)
    joined = [name for rule in rules if isinstance(rule, WeightConverter) for name in rule.target_patterns]
    return [
        layer
        for layer, module in model.named_modules()
        for parameter, _ in module.named_parameters(recurse=False)
        if any(name in f"{layer}.{parameter}" for name in joined)
    ]


def _is_taken(model: Any, name: str) -> bool:
    try:
        return bool(_converted(model, [name]).target_parameters)
    except ValueError:  # a part of experts that PEFT takes only together with another one
        return True


def _converted(model: Any, targets: str | list[str]) -> LoraConfig:
    config = LoraConfig(target_modules=targets)
    convert_peft_config_for_transformers(config, model, None)
    return config
