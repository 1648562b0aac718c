"""Checks an adapter's settings: what the merge supports, what has no effect on the weights, and what it refuses.

It reads no tensors and needs no libraries for them, so that an adapter is also checked before a run is created.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engines.json_text import read_object
from recipes.problems import OperatorError, printable, shown
from recipes.stages.adapter.patterns import pattern_problem

Initial = Literal["pissa", "olora"]
"""Initializations that take a part out of the base model and that the base model alone determines."""

BY_PEFT = "merge it with PEFT (merge_and_unload, save_pretrained) and use the merged folder as the model"
_PLAIN = (
    "turn it into a plain LoRA adapter: PEFT's save_pretrained does that with "
    "path_initial_model_for_weight_conversion = the adapter as it was before training; or save the base model as this "
    'initialization left it, use it as the model, and set "init_lora_weights": true in adapter_config.json'
)
_UNUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "layer_replication": ((None,), BY_PEFT),
    "target_parameters": ((None, []), BY_PEFT),
    "alora_invocation_tokens": (
        (None,),
        "it works only after its invocation tokens, so no merged model equals it; serve it with PEFT or vLLM",
    ),
    "arrow_config": ((None,), "it chooses among adapters for each token; merge one of those adapters instead"),
}
"""Settings that change an adapter's meaning, with the values without effect, and what to do about another value."""

_NO_CHANGE_OF_BASE = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
_KNOWN = frozenset(
    (
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "trainable_token_indices",
        "use_dora",
        "use_rslora",
    )
)
"""Settings that the merge reads, or that only affect training."""


def _is_token_indices(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [value]
    return all(
        isinstance(item, list) and all(type(index) is int and index >= 0 for index in item) and _unique(item)
        for item in lists
    )


def _unique(indices: list[int]) -> bool:
    return len(set(indices)) == len(indices)


_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("use_rslora", "use_dora", "lora_bias"),
        lambda value: isinstance(value, bool),
        "true, false",
    ),
    (("rank_pattern", "alpha_pattern"), lambda value: isinstance(value, dict), "a table of module = number"),
    (
        ("modules_to_save",),
        lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
        "a list of names",
    ),
    (("bias",), lambda value: value in ("none", "all", "lora_only"), "none, all, lora_only"),
    (
        ("trainable_token_indices",),
        _is_token_indices,
        "a list of different token ids, or a table of module = such a list",
    ),
)
"""The types of settings that the merge reads; a value of another type is refused, not ignored."""


def read_settings(folder: Path) -> dict[str, Any]:
    """An adapter's settings, if the merge supports them.

    Raises:
        OperatorError: the folder is not a LoRA adapter, or has a setting that the merge does not support.
    """
    config = read_object(folder / ADAPTER_CONFIG)
    _check_settings(folder, config)
    _refuse_copy_over_the_rest(folder)
    return config


def weights_file(folder: Path) -> Path:
    """The file of an adapter's tensors.

    Raises:
        OperatorError: it is missing, or a pickle.
    """
    path = folder / ADAPTER_WEIGHTS
    if path.is_file():
        return path
    pickled = folder / "adapter_model.bin"
    if pickled.is_file():
        raise OperatorError(
            f"{pickled} is a pickle, which merge does not load: loading it can run any code that its author put in",
            "get the adapter as safetensors; or, if you trust the author, load it and save it with "
            "safe_serialization=True",
        )
    raise OperatorError(f"{path} is missing", "save the adapter as safetensors")


def _refuse_copy_over_the_rest(folder: Path) -> None:
    """Refuse two folders that LLaMA-Factory writes inside a PiSSA adapter. Their settings name no initialization, but
    they belong to what PiSSA left of the base model: a merge into the whole base model would be another model."""
    parent = folder.absolute().parent
    if folder.name not in ("pissa_init", "pissa_backup") or not (parent / ADAPTER_CONFIG).is_file():
        return
    if str(read_object(parent / ADAPTER_CONFIG).get("init_lora_weights")).startswith("pissa"):
        raise OperatorError(
            f"{folder} is LLaMA-Factory's copy of a PiSSA adapter over what PiSSA left of the base model",
            f"merge {parent / 'pissa_converted'} or {parent}",
        )


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Refuse an adapter whose settings the merge does not support.

    Raises:
        OperatorError: the setting, its value, and what to do instead.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise OperatorError(f"{folder}: peft_type — got {printable(str(kind))}; allowed LORA", BY_PEFT)
    for names, fits, allowed in _KINDS:
        for name in names:
            if config.get(name) is not None and not fits(config[name]):
                raise OperatorError(f"{folder}/{ADAPTER_CONFIG}: {name} — got {shown(config[name])}; allowed {allowed}")
    for name, value, hint in other_features(config):
        raise _unsupported(folder, name, value, hint)
    initial_of(folder, config)


def other_features(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Settings that make an adapter more than LoRA, also those of newer versions of PEFT: name, value, what to do."""
    for name, value in config.items():
        if name in _UNUSED:
            harmless, hint = _UNUSED[name]
            if value not in harmless:
                yield name, value, hint
        elif name not in _KNOWN and value not in (None, False, [], {}):
            yield name, value, BY_PEFT


def initial_of(folder: Path, config: dict[str, Any]) -> Initial | None:
    """The initialization that took a part out of the base model; None if the adapter belongs to the whole base model.

    Raises:
        OperatorError: it took out a part that depends on more than the base model: random numbers, data, gradients, or
            a rounding.
    """
    value = config.get("init_lora_weights")
    if value == "pissa":
        return "pissa"
    if value == "olora":
        return "olora"
    if value not in _NO_CHANGE_OF_BASE:
        raise _unsupported(folder, "init_lora_weights", value, _PLAIN)
    return None


def _unsupported(folder: Path, name: str, value: Any, hint: str) -> OperatorError:
    got = printable(str(value), 200)
    return OperatorError(f"{folder}: {printable(name)} — got {got}; merge does not support this adapter feature", hint)


def scale_of(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with PEFT's patterns by module name.

    Args:
        config: the adapter's settings.
        module: the layer's name in the base model.
        rank: of its matrices.

    Raises:
        OperatorError: rank or alpha is not a number, or the matrices have another rank than the settings.
    """
    name = printable(module, 200)
    wanted = _pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (wanted, alpha))
    if not numbers or not math.isfinite(alpha):
        raise OperatorError(
            f"{name}: r and lora_alpha — got {printable(f'{wanted} and {alpha}')}; allowed finite numbers"
        )
    if wanted != rank:
        raise OperatorError(f"{name}: the adapter's settings have rank {wanted}, its matrices {rank}")
    return float(alpha) / math.sqrt(wanted) if config.get("use_rslora") else float(alpha) / wanted


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that, as a regular expression, matches the end of the module's name at a dot."""
    for key, value in (patterns or {}).items():
        problem = pattern_problem(str(key))
        if problem:
            raise OperatorError(f"rank_pattern or alpha_pattern — {problem}", "write the layers' names in full")
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
