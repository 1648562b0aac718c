"""The keys of a GGUF file that describe the model. All are always written: llama.cpp's defaults for missing ones are silent.

A wrong rms epsilon, rope base or rope scaling loads without a word and changes every answer; parity finds it.
"""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.architectures import head_width, kv_heads, rope_settings
from exporters.quant_types import FILE_TYPE_IDS


def add_metadata(
    writer: gguf.GGUFWriter,
    config: dict[str, Any],
    *,
    name: str,
    file_type: str,
    parameters: int,
) -> None:
    """Write every key of `general.` and of the architecture.

    Args:
        writer: an open writer for this architecture.
        config: the model's config.json.
        name: what the file is called for a reader.
        file_type: a key of `FILE_TYPE_IDS`.
        parameters: number of weights, for the size label.
    """
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(parameters))
    if isinstance(config.get("license"), str):
        writer.add_license(config["license"])
    writer.add_file_type(FILE_TYPE_IDS[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    width = head_width(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(kv_heads(config))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(width)
    _add_rope(writer, rope_settings(config))


def _add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        if rope.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(float(rope["attention_factor"]))
        for field, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(field) is not None:
                add(float(rope[field]))


def rope_factors(config: dict[str, Any]) -> NDArray[np.float32] | None:
    """Llama 3's divisors of the rotary frequencies, float32 [head width / 2]; None for other kinds of rope.

    With wavelength L = 2 pi / f and original context O: L < O / high → 1; L > O / low → factor; between them
    1 / ((1 - s) / factor + s) with s = (O / L - low) / (high - low).
    """
    rope = rope_settings(config)
    if rope["rope_type"] != "llama3":
        return None
    width, factor = head_width(config), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    wavelengths = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, between))
    return factors.astype(np.float32)


def size_label(parameters: int) -> str:
    """The size as model names give it: 3.8M, 14B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"
    return str(parameters)
