"""Compares the keys that describe the network with config.json, by the values that a runtime takes from the file.

A key that a file does not have is the runtime's default: files of llama.cpp's own converter leave such keys out. The
defaults are those of llama.cpp's src/llama-model.cpp (`load_hparams`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import ARRAY, GgufFile, Value
from exporters.proof.audit_families import family_of
from exporters.proof.audit_vocab import numbers_of, texts_of
from recipes.file_types import FILE_TYPES, file_type_of_id
from recipes.problems import printable

_SCALING = {"linear": "linear", "yarn": "yarn"}

_PATTERN = "attention.sliding_window_pattern"
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attention.temperature_scale": (0.0,),
    "attention.value_scale": (0.0, 1.0),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}
"""Keys that change what a runtime computes, without the family's name, and the values with which they change nothing.
The first is what an absent key means. A file may have one of them with another value only if its model has the setting.
"""


@dataclass(frozen=True)
class Expected:
    """The value that a key must have in effect, and the field of config.json that it comes from."""

    value: Any
    field: str


def audit_keys(file: GgufFile, config: Mapping[str, Any], file_type: str | None = None) -> list[str]:
    """Compare the keys that describe the network with config.json; return the findings.

    Args:
        file: the file.
        config: the model's config.
        file_type: the type that the file was written in; None if that is not known.
    """
    row = family_of(config)
    family = row.name
    wanted = expected_keys(config)
    findings = _architecture(file, family)
    for key, expected in wanted.items():
        full = f"{family}.{key}"
        value = effective(file, family, key, row.defaults)
        if key == "rope.scaling.attn_factor" and row.log_multiplier:
            value = _with_multiplier(file, family, value)
        if value is None:
            findings.append(f"{full} is missing; {expected.field} is {printable(str(expected.value), 60)}")
        elif not equal(value, expected.value):
            how = "is" if full in file.keys else "is missing, which means"
            findings.append(
                f"{full} {how} {printable(str(value), 60)}; the model's {expected.field} is "
                f"{printable(str(expected.value), 60)}"
            )
    for key, neutral in NEUTRAL.items():
        full = f"{family}.{key}"
        if key in wanted or full not in file.keys or (key == _LOG_MULTIPLIER and row.log_multiplier):
            continue
        value = value_of(file.keys[full])
        if not any(equal(value, harmless) for harmless in neutral) and not _harmless(key, value, config):
            findings.append(f"{full} is {printable(str(value), 60)}, but the model has no such setting")
    return findings + _file_type(file, file_type)


def effective(file: GgufFile, family: str, key: str, defaults: Mapping[str, Any] | None = None) -> Any:
    """The value that a runtime uses for a key: the file's, or the default for an absent one.

    Args:
        file: the file.
        family: the prefix of its keys.
        key: without the prefix.
        defaults: the family's own defaults, which come first.

    Returns:
        A number, text, boolean or list of numbers; None for an absent key that has no default.
    """
    if key == "rope.scaling.type":
        return _scaling_type(file, family)
    own = defaults or {}
    if key == _PATTERN:
        return _windows(file, family, own.get(key, 0))
    given = file.keys.get(f"{family}.{key}")
    if given is not None:
        return value_of(given)
    if key in own:
        return own[key]
    if key in _DEFAULTS:
        return _DEFAULTS[key](file, family)
    return NEUTRAL[key][0] if key in NEUTRAL else None


def value_of(value: Value) -> Any:
    """A key's scalar, or its list of numbers; a list of equal numbers, one for each layer, is that number."""
    if value.kind != ARRAY:
        return value.scalar
    numbers = numbers_of(value)
    return numbers[0] if numbers and len(set(numbers)) == 1 else numbers


def _with_multiplier(file: GgufFile, family: str, value: Any) -> Any:
    """The factor of sine and cosine that two keys give together."""
    multiplier, factor = (effective(file, family, key) for key in (_LOG_MULTIPLIER, "rope.scaling.factor"))
    numbers = all(isinstance(number, int | float) for number in (value, multiplier, factor))
    return value / _mscale(float(factor), float(multiplier)) if numbers and multiplier else value


def _windows(file: GgufFile, family: str, period: int) -> list[int]:
    """1 for each layer with a window: as listed, or in all but the last of each `period` layers; 0 means all."""
    layers = effective(file, family, "block_count")
    given = file.keys.get(f"{family}.{_PATTERN}")
    if given is not None and given.kind == ARRAY:
        return [int(number) for number in numbers_of(given)]
    every = int(given.scalar) if given is not None and isinstance(given.scalar, int) else period
    return [int(not every or (layer + 1) % every != 0) for layer in range(layers if isinstance(layers, int) else 0)]


def _of(key: str) -> Callable[[GgufFile, str], Any]:
    return lambda file, family: effective(file, family, key)


def _head_width(file: GgufFile, family: str) -> int | None:
    width, heads = (effective(file, family, key) for key in ("embedding_length", "attention.head_count"))
    return int(width) // int(heads) if isinstance(width, int) and isinstance(heads, int | float) and heads else None


def _factor(file: GgufFile, family: str) -> Any:
    """The old name of the factor; 0 and no key at all mean 1."""
    return file.scalar(f"{family}.rope.scale_linear", 0.0) or 1.0


_DEFAULTS: Mapping[str, Callable[[GgufFile, str], Any]] = {
    "attention.head_count_kv": _of("attention.head_count"),
    "attention.key_length": _head_width,
    "attention.value_length": _head_width,
    "rope.dimension_count": _of("attention.key_length"),
    "rope.freq_base": lambda _file, _family: 10_000.0,
    "rope.scaling.factor": _factor,
    "rope.scaling.original_context_length": _of("context_length"),
    "vocab_size": lambda file, _family: len(texts_of(file.keys.get("tokenizer.ggml.tokens"))),
}


def _scaling_type(file: GgufFile, family: str) -> str:
    """The kind of rotary scaling in effect: "none" for linear with factor 1, the default."""
    given = str(file.scalar(f"{family}.rope.scaling.type", "linear"))
    factor = effective(file, family, "rope.scaling.factor")
    return "none" if given == "linear" and equal(factor, 1.0) else given


def _harmless(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Values that say what the runtime does anyway."""
    if key == "attention.sliding_window":  # not shorter than the context
        return isinstance(value, int) and value >= int(config["max_position_embeddings"])
    if key == "attention.scale":
        return equal(value, 1 / math.sqrt(_width(config)))
    return False


def _architecture(file: GgufFile, family: str) -> list[str]:
    got = file.scalar("general.architecture")
    if got == family:
        return []
    if got is None:
        return [f"general.architecture is missing; architecture is {family}"]
    return [f"general.architecture is {printable(str(got), 60)}; the model's architecture is {family}"]


def _file_type(file: GgufFile, file_type: str | None) -> list[str]:
    """A file type that is not the written one, or, where that is not known, that no matrix of the file shows."""
    number = file.scalar("general.file_type")
    row = file_type_of_id(number) if isinstance(number, int) else None
    named = row.name if row is not None else "unknown"
    if file_type is not None:
        right = number == FILE_TYPES[file_type].id
        return [] if right else [f"general.file_type is {number} ({named}); the file was written as {file_type}"]
    matrices = [tensor for tensor in file.tensors.values() if tensor.kind is not None and tensor.matrix]
    kinds = {tensor.kind.name for tensor in matrices if tensor.kind is not None}
    if row is None or not matrices or row.base in kinds:
        return []
    plain = all(TYPES[kind].plain for kind in kinds)
    block = TYPES[row.base].block
    whole = any(tensor.columns % block == 0 for tensor in matrices)
    if row.quantized and (not plain or not whole):  # a mixture of the operator, or llama.cpp's types for odd widths
        return []
    if row.name in ("F16", "BF16") and kinds <= {"F32"}:
        return []
    return [f"general.file_type is {number} ({row.name}), but no matrix of the file is {row.base}"]


def expected_keys(config: Mapping[str, Any]) -> dict[str, Expected]:
    """What each key must mean, by its name without the family's. Meanings: llama.cpp's
    docs/development/HOWTO-add-model.md and gguf.md."""
    heads = int(config["num_attention_heads"])
    width = _width(config)
    pairs: dict[str, tuple[Any, str]] = {
        "context_length": (config["max_position_embeddings"], "max_position_embeddings"),
        "embedding_length": (config["hidden_size"], "hidden_size"),
        "block_count": (config["num_hidden_layers"], "num_hidden_layers"),
        "feed_forward_length": (config["intermediate_size"], "intermediate_size"),
        "attention.head_count": (heads, "num_attention_heads"),
        "attention.head_count_kv": (int(config.get("num_key_value_heads") or heads), "num_key_value_heads"),
        "attention.key_length": (width, "head width"),
        "attention.value_length": (width, "head width"),
        "attention.layer_norm_rms_epsilon": (float(config["rms_norm_eps"]), "rms_norm_eps"),
        "rope.dimension_count": (width, "head width"),
        "vocab_size": (config["vocab_size"], "vocab_size"),
        **_rope(config),
        **family_of(config).meanings(config),
    }
    return {key: Expected(*pair) for key, pair in pairs.items()}


def _width(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def _rope(config: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope["full_attention"] if isinstance(rope.get("full_attention"), dict) else rope
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    found: dict[str, tuple[Any, str]] = {"rope.freq_base": (float(theta), "rope_theta")}
    kind = _SCALING.get(str(rope.get("rope_type", rope.get("type", "default"))), "none")
    if kind == "linear" and float(rope["factor"]) == 1.0:
        kind = "none"
    found["rope.scaling.type"] = (kind, "rope_type")
    if kind == "linear":
        found["rope.scaling.factor"] = (float(rope["factor"]), "rope factor")
    if kind == "yarn":
        context = config["max_position_embeddings"]
        inside = rope.get("original_max_position_embeddings", context)
        original = int(config.get("original_max_position_embeddings", inside))
        found["rope.scaling.original_context_length"] = (original, "original_max_position_embeddings")
        factor = float(rope["factor"] or context / original)
        found["rope.scaling.factor"] = (factor, "rope factor")
        share = _magnitude(rope, factor) / _mscale(factor, 1.0)  # llama.cpp applies the usual factor itself
        found["rope.scaling.attn_factor"] = (share, "attention_factor")
    return found


def _magnitude(rope: Mapping[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _mscale(factor, rope["mscale"]) / _mscale(factor, rope["mscale_all_dim"])
    return _mscale(factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 1.0 + 0.1 * scale * math.log(factor)


def equal(value: Any, wanted: Any) -> bool:
    """Whether a value in a file is the wanted one; fractions are compared as float32, which files store."""
    if isinstance(value, list) or isinstance(wanted, list):
        return bool(value == wanted)
    if isinstance(wanted, str) or isinstance(value, str):
        return bool(value == wanted)
    if isinstance(wanted, float) or isinstance(value, float):
        try:
            return struct.pack("<f", value) == struct.pack("<f", wanted) or float(value) == float(wanted)
        except (TypeError, ValueError, OverflowError, struct.error):
            return False
    return bool(value == wanted)
