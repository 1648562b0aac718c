"""Audits a finished GGUF file: compares its keys, tokens and tensors with the model's folder.

The audit uses no code of the writer. It validates the file, and derives the expected content from config.json, the
tokenizer's files and the source tensors. Parity shows whether a file answers like its model; if it does not, the audit
names the wrong key, token or tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.llama.gguf_file import ARRAY, FLOAT32, STRING, GgufFile, Value, read_gguf
from exporters.hf_model.model_folder import open_weights, read_settings
from exporters.hf_model.tensor_files import Weights
from exporters.proof.audit_families import family_of
from exporters.proof.audit_tensors import audit_tensors
from exporters.proof.audit_tokens import audit_tokens
from recipes.problems import printable

_SCALING = {"linear": "linear", "yarn": "yarn"}
MAX_FINDINGS = 20


def audit(
    gguf: Path, folder: Path, *, config: Mapping[str, Any] | None = None, weights: Weights | None = None
) -> list[str]:
    """Compare a file with the model that it was converted from.

    Args:
        gguf: the finished file.
        folder: the model's folder.
        config: its config, if it is not the folder's (adapters merged while writing).
        weights: its tensors, likewise.

    Returns:
        The first `MAX_FINDINGS` findings, each with its key, token or tensor; empty when the file is correct.

    Raises:
        OperatorError: the file is not a complete GGUF file, or the folder is not a model.
    """
    file = read_gguf(gguf)
    found = dict(config if config is not None else read_settings(folder))
    tensors = weights if weights is not None else open_weights(folder)
    findings = [*audit_keys(file, found), *audit_tokens(file, folder, found), *audit_tensors(file, found, tensors)]
    return findings[:MAX_FINDINGS]


def audit_keys(file: GgufFile, config: Mapping[str, Any]) -> list[str]:
    """Compare the keys that describe the network with config.json."""
    findings = []
    for key, (wanted, field) in _expected(config).items():
        value = file.keys.get(key)
        if value is None:
            findings.append(f"{key} is missing; {field} is {wanted}")
        elif not _equal(value, wanted):
            shown = value.scalar if value.scalar is not None else "a list"
            findings.append(
                f"{key} is {printable(str(shown), 60)}; the model's {field} is {printable(str(wanted), 60)}"
            )
    scaling = [key for key in file.keys if ".rope.scaling." in key and key not in _expected(config)]
    findings += [f"{printable(key, 80)} is set, but the model has no such scaling" for key in scaling]
    return findings


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Value and config field by key. Meanings: llama.cpp's docs/development/HOWTO-add-model.md and gguf.md."""
    name = family_of(config).name
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    plain = {
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
    }
    found: dict[str, tuple[Any, str]] = {"general.architecture": (name, "architecture")}
    return found | {f"{name}.{key}": pair for key, pair in plain.items()}


def _rope(config: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    found: dict[str, tuple[Any, str]] = {"rope.freq_base": (float(theta), "rope_theta")}
    kind = _SCALING.get(str(rope.get("rope_type", rope.get("type", "default"))))
    if kind is None:
        return found
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
        if share != 1.0:
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


def _equal(value: Value, wanted: Any) -> bool:
    if value.kind == FLOAT32 and isinstance(wanted, int | float):
        return value.raw == struct.pack("<f", wanted)
    if value.kind in (STRING, ARRAY):
        return value.scalar == wanted
    return value.scalar == wanted and isinstance(wanted, int | float)
