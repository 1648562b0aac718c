"""Checks the sizes in a config.json before anything is allocated or computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters.hf_model.family import Architecture, head_width, kv_heads
from exporters.hf_model.rope import LARGEST_CONTEXT
from recipes.problems import OperatorError, printable, shown
from recipes.stages.decoder.model_types import LINEAR, TERNARY

_LARGEST = {
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_hidden_layers": 512,  # llama.cpp's own bound
    "num_attention_heads": 2**16,
    "max_position_embeddings": LARGEST_CONTEXT,
    "vocab_size": 2**24,
}
_OPTIONAL = {"num_key_value_heads": 2**16, "head_dim": 2**16}
_ACTIVATIONS = ("hidden_act", "hidden_activation")
_OUT_OF_MXFP4 = (
    "load it in transformers with quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16, and save it: "
    "BF16 has its values exactly, and the file type MXFP4_MOE stores the same values in 4 bits again"
)
_SAID_ONCE = (*_LARGEST, *_OPTIONAL, "rms_norm_eps")
"""Settings whose value must be the same wherever a config.json has them."""


def complete_config(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that can be merged or written to GGUF.

    Raises:
        OperatorError: the model is quantized, or a count is out of range.
    """
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise OperatorError(
            f"{folder} contains quantized weights ({printable(str(method))}), which cannot be merged or written "
            "to GGUF",
            _OUT_OF_MXFP4
            if method == "mxfp4"
            else "use the original 16- or 32-bit model; merge an adapter that was trained over a 4-bit copy into the "
            "original",
        )
    check_counts(folder, config)
    return config


def check_counts(folder: Path, config: dict[str, Any]) -> None:
    """Refuse counts that no model of any family has, before a library tries to build a model of that size.

    Raises:
        OperatorError: a count is out of range; one line for each.
    """
    if config.get(LINEAR) == TERNARY:
        raise OperatorError(
            f"{folder} has the weights of a training with {LINEAR} = {TERNARY} before their rounding, which is another"
            " model than the one that was trained",
            "use the finished model of that stage",
        )
    tables = {"": config} | {f"{name}.": table for name, table in config.items() if isinstance(table, dict)}
    problems = [
        f"{place}{key} — got {shown(table[key])}; allowed at most {largest}"
        for place, table in tables.items()
        for key, largest in {**_LARGEST, **_OPTIONAL}.items()
        if isinstance(table.get(key), int | float) and not table[key] <= largest
    ]
    _refuse(folder, problems)


def contradictions(config: Mapping[str, Any], table: str) -> list[str]:
    """Settings of the language model that config.json has twice, at the top level and in a table, with two values."""
    nested = config.get(table)
    if not isinstance(nested, dict):
        return []
    return [
        f"{key} — got {shown(config[key])}, and {shown(nested[key])} in {table}; allowed one value"
        for key in _SAID_ONCE
        if config.get(key) is not None and nested.get(key) is not None and config[key] != nested[key]
    ]


def check_config(folder: Path, config: dict[str, Any], family: Architecture, more: Sequence[str] = ()) -> None:
    """Refuse a config that does not define every shape, or that a GGUF file of the family cannot express.

    Args:
        folder: the model's folder, for the message.
        config: the language model's settings.
        family: its family.
        more: problems that were found before.

    Raises:
        OperatorError: a value is missing or not allowed; one line for each.
    """
    problems = [
        f"{key} — got {shown(config[key]) if key in config else 'nothing'}; allowed a whole number from 1 to {largest}"
        for key, largest in {**_LARGEST, **_OPTIONAL}.items()
        if not _is_count(config.get(key), largest) and not (key in _OPTIONAL and config.get(key) is None)
    ]
    epsilon = config.get("rms_norm_eps")
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        problems.append(f"rms_norm_eps — got {shown(epsilon)}; allowed a number from 0 to below 1")
    if not isinstance(config.get("tie_word_embeddings"), bool):
        problems.append(f"tie_word_embeddings — got {shown(config['tie_word_embeddings'])}; allowed true, false")
    problems += [
        f"{key} — got {shown(config[key])}; allowed {family.activation}"
        for key in _ACTIVATIONS
        if config.get(key) not in (None, family.activation)
    ]
    problems += [*_head_problems(config), *_window_problems(config)] if not problems else []
    problems += family.problems(config) if not problems else []
    if _is_count(config.get("max_position_embeddings"), LARGEST_CONTEXT):
        try:
            family.rope(config)
        except OperatorError as error:
            problems += error.message.splitlines()
    _refuse(folder, [*more, *problems])


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        raise OperatorError("\n".join(f"{folder}/config.json: {problem}" for problem in problems))


def _window_problems(config: Mapping[str, Any]) -> list[str]:
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    problems = []
    if window is not None and not _is_count(window, LARGEST_CONTEXT) and config.get("use_sliding_window", True):
        problems.append(f"sliding_window — got {shown(window)}; allowed a whole number, or null")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != config["num_hidden_layers"]):
        problems.append(
            f"layer_types — got {shown(kinds)}; allowed one for each of {config['num_hidden_layers']} layers"
        )
    return problems


def _head_problems(config: dict[str, Any]) -> list[str]:
    heads, groups = config["num_attention_heads"], kv_heads(config)
    problems = []
    if heads % groups:
        problems.append(f"num_key_value_heads — got {groups}; allowed a divisor of num_attention_heads, {heads}")
    if config.get("head_dim") is None and config["hidden_size"] % heads:
        problems.append(f"num_attention_heads — got {heads}; allowed a divisor of hidden_size, {config['hidden_size']}")
    elif head_width(config) % 2:
        problems.append(
            f"head width — got {head_width(config)}; allowed an even number: rotary positions use pairs of values"
        )
    return problems


def _is_count(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= largest and math.isfinite(value)
