"""The keys of a GGUF file that describe the model. All are always written: llama.cpp's defaults for missing ones are silent.

A wrong rms epsilon, rope base or rope scaling loads without a word and changes every answer; parity finds it.
"""

from __future__ import annotations

from typing import Any

import gguf

from exporters.gguf.quant_types import FILE_TYPE_IDS
from exporters.hf_model.model_config import head_width, kv_heads
from exporters.hf_model.rope import Rope, read_rope


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
    _add_rope(writer, read_rope(config))


def _add_rope(writer: gguf.GGUFWriter, rope: Rope) -> None:
    writer.add_rope_freq_base(rope.theta)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    elif rope.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        if rope.magnitude != 1.0:
            writer.add_rope_scaling_attn_factors(rope.magnitude)


def size_label(parameters: int) -> str:
    """The size as model names give it: 3.8M, 14B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"
    return str(parameters)
