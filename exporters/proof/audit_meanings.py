"""What the keys of single families must mean in effect, from config.json and the families' own documentation.

The audit's: nothing here comes from the writer's rows. Each function returns, by the key's name without the family's,
the value and the field of config.json that it comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
Meanings = dict[str, tuple[Any, str]]


def none(_config: Config) -> Meanings:
    """No keys besides those of all families."""
    return {}


def gemma2(config: Config) -> Meanings:
    """Windows in every second layer, and two soft caps."""
    return {
        **_windows(config, 2),
        "attn_logit_softcapping": (float(config["attn_logit_softcapping"]), "attn_logit_softcapping"),
        "final_logit_softcapping": (float(config["final_logit_softcapping"]), "final_logit_softcapping"),
    }


def gemma3(config: Config) -> Meanings:
    """Windows in five of six layers, which have rotary positions of their own."""
    cap = config.get("final_logit_softcapping")
    found: Meanings = {
        **_windows(config, 6),
        "final_logit_softcapping": (float(cap) if cap else 0.0, "final_logit_softcapping"),
    }
    if "attention.sliding_window_pattern" in found:
        local: Config = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
        theta = local.get("rope_theta", config.get("rope_local_base_freq", 10_000.0))
        found["rope.freq_base_swa"] = (float(theta), "rope_theta of sliding_attention")
    return found


def granite(config: Config) -> Meanings:
    """Four multipliers; llama.cpp divides by the last one."""
    names = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return {key: (float(config[name]), name) for key, name in names.items()}


def qwen3_moe(config: Config) -> Meanings:
    """Experts in every layer."""
    return {
        "expert_count": (experts(config), "num_experts"),
        "expert_used_count": (config["num_experts_per_tok"], "num_experts_per_tok"),
        "expert_feed_forward_length": (config["moe_intermediate_size"], "moe_intermediate_size"),
    }


def gpt_oss(config: Config) -> Meanings:
    """Experts in every layer, and windows in every second one."""
    return {
        **_windows(config, 2),
        "expert_count": (experts(config), "num_local_experts"),
        "expert_used_count": (config["num_experts_per_tok"], "num_experts_per_tok"),
        "expert_feed_forward_length": (config["intermediate_size"], "intermediate_size"),
    }


def experts(config: Config) -> int:
    """Number of experts of a layer; transformers 5 saves it as num_local_experts."""
    return int(config["num_experts"] if "num_experts" in config else config["num_local_experts"])


def phi3(config: Config) -> Meanings:
    """Part of each head may be rotated, with factors for short and long texts."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    width = int(config["hidden_size"]) // int(config["num_attention_heads"])
    found: Meanings = {"rope.dimension_count": (int(width * share), "partial_rotary_factor")}
    if "long_factor" not in rope:
        return found
    context = int(config["max_position_embeddings"])
    inside = rope.get("original_max_position_embeddings", context)
    original = int(config.get("original_max_position_embeddings") or inside)
    factor = rope.get("factor") or context / original
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    found["rope.scaling.original_context_length"] = (original, "original_max_position_embeddings")
    found["rope.scaling.attn_factor"] = (float(rope.get("attention_factor") or usual), "attention_factor")
    return found


def mistral3(config: Config) -> Meanings:
    """Queries that grow with the position, and YaRN's boundaries."""
    rope = config.get("rope_parameters") or {}
    grows = config.get("model_type") == "ministral3"
    found: Meanings = {
        "attention.temperature_scale": (float(rope["llama_4_scaling_beta"]) if grows else 0.0, "llama_4_scaling_beta")
    }
    if rope.get("rope_type", rope.get("type")) == "yarn":
        found["rope.scaling.yarn_beta_fast"] = (float(rope.get("beta_fast") or 32), "beta_fast")
        found["rope.scaling.yarn_beta_slow"] = (float(rope.get("beta_slow") or 1), "beta_slow")
    return found


def _windows(config: Config, period: int) -> Meanings:
    """The window, and 1 for each layer that has it; the last of every `period` layers has none by default."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = int(config.get("sliding_window_pattern") or period)
        kinds = [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
            for layer in range(int(config["num_hidden_layers"]))
        ]
    places = [int(kind == "sliding_attention") for kind in kinds]
    if not config.get("sliding_window") or not any(places):
        return {"attention.sliding_window": (0, "sliding_window")}
    return {
        "attention.sliding_window": (int(config["sliding_window"]), "sliding_window"),
        "attention.sliding_window_pattern": (places, "layer_types"),
    }
