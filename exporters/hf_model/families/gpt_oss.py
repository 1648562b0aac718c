"""gpt-oss: experts in every layer, with biases and a gate of their own; windows in every second layer; attention sinks.

transformers has all experts of a layer in one tensor, column by column, gate and up alternating. Sources: transformers'
modeling_gpt_oss.py; llama.cpp's src/models/openai-moe.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exporters.hf_model.family import ATTENTION, KEYS, Architecture, Key, Packed, Part, Settings, layer_of
from exporters.hf_model.windows import window_of, window_pattern
from recipes.problems import shown

_EXPERTS = "num_local_experts"
_MOST_EXPERTS = 512
"""llama.cpp's LLAMA_MAX_EXPERTS."""
_PERIOD = 2
"""Every n-th layer has no window."""
_FIXED: Mapping[str, Any] = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True}
"""What llama.cpp computes for every file of the family."""
_SIZES = {"gate": ("intermediate_size", "hidden_size"), "up": ("intermediate_size", "hidden_size"),
          "down": ("hidden_size", "intermediate_size")}  # fmt: skip
_PLACES = {
    "gate": ("gate_up_proj", Packed(0, 2)),
    "up": ("gate_up_proj", Packed(1, 2)),
    "down": ("down_proj", Packed()),
}
"""The parameter that has a matrix, and how."""


def _expert_parts() -> Iterator[Part]:
    for name, (module, packed) in _PLACES.items():
        part, shape = f"ffn_{name}_exps", _SIZES[name]
        yield Part(part, f"mlp.experts.{module}", shape, experts=_EXPERTS, packed=packed, leaf="")
        bias = f"mlp.experts.{module}_bias"
        yield Part(part, bias, shape[:1], experts=_EXPERTS, packed=packed, leaf="", suffix="bias")


def _problems(settings: Settings) -> Iterator[str]:
    experts, used = settings[_EXPERTS], settings["num_experts_per_tok"]
    if not _is_count(experts, _MOST_EXPERTS):
        yield f"{_EXPERTS} — got {shown(experts)}; allowed a whole number from 1 to {_MOST_EXPERTS}"
    elif not _is_count(used, experts):
        yield f"num_experts_per_tok — got {shown(used)}; allowed a whole number from 1 to {_EXPERTS}, {experts}"
    for name, value in _FIXED.items():
        if settings[name] != value:
            yield f"{name} — got {shown(settings[name])}; allowed {shown(value)}: llama.cpp computes no other"
    if settings["tie_word_embeddings"]:
        yield "tie_word_embeddings — got true; allowed false: llama.cpp's gpt-oss has no tied output head"
    if window_of(settings) is None:
        yield (
            f"sliding_window — got {shown(settings.get('sliding_window'))}; allowed a whole number: llama.cpp's "
            "gpt-oss always has windows"
        )


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _warnings(settings: Settings) -> Iterator[str]:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if rope.get("truncate", True) is not True:
        yield (
            "rope_parameters.truncate — got false, but llama.cpp always rounds the range between YaRN's boundaries, in "
            "files of any converter: its answers differ slightly from the model's; the files are compared with the "
            "model that has the rounded range"
        )


GPT_OSS = Architecture(
    "gpt-oss",
    layer_of(
        Part("post_attention_norm", "post_attention_layernorm", ("hidden_size",)),
        Part("attn_sinks", "self_attn.sinks", ("num_attention_heads",), leaf=""),
        Part("ffn_gate_inp", "mlp.router", (_EXPERTS, "hidden_size"), biased=True),
        *_expert_parts(),
        biased=ATTENTION,
        without=("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
    ),
    (
        *KEYS,
        Key("attention.sliding_window", window_of),
        Key("attention.sliding_window_pattern", lambda settings: window_pattern(settings, _PERIOD), "bool_list"),
        Key("expert_count", _EXPERTS),
        Key("expert_used_count", "num_experts_per_tok"),
        Key("expert_feed_forward_length", "intermediate_size"),
    ),
    defaults={
        **_FIXED,
        _EXPERTS: 128,
        "num_experts_per_tok": 4,
        "head_dim": 64,
        "sliding_window": 128,
        "rms_norm_eps": 1e-5,
    },
    rounded_yarn=True,
    windowed=True,
    problems=_problems,
    warnings=_warnings,
)
