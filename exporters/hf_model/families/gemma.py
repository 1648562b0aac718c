"""Gemma 2 and 3: norms multiply by 1 + weight, sandwich norms, sliding windows in most layers, soft caps.

Sources: transformers' modeling_gemma2.py and modeling_gemma3.py; llama.cpp's src/models/gemma2.cpp and gemma3.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from exporters.hf_model.family import HEAD_NORMS, KEYS, Architecture, Key, Part, Settings, head_width, layer_of
from exporters.hf_model.windows import SLIDING, window_of, window_pattern
from recipes.problems import shown

_ACTIVATION = "gelu_pytorch_tanh"
_PERIODS = {"gemma2": 2, "gemma3": 6}
"""Every n-th layer has no window."""
_WIDTH_BY_HIDDEN_SIZE = {"gemma2": 46, "gemma3": 62}
"""Number of layers of the models, 27B, whose attention llama.cpp scales by hidden_size / heads, not by head width."""
_LOCAL_THETA = 10_000.0


def _norms(*parts: Part) -> tuple[Part, ...]:
    return tuple(replace(part, offset=1.0) for part in parts)


_LAYER = (
    *layer_of(without=("attn_norm", "ffn_norm")),
    *_norms(
        Part("attn_norm", "input_layernorm", ("hidden_size",)),
        Part("post_attention_norm", "post_attention_layernorm", ("hidden_size",)),
        Part("ffn_norm", "pre_feedforward_layernorm", ("hidden_size",)),
        Part("post_ffw_norm", "post_feedforward_layernorm", ("hidden_size",)),
    ),
)
_NORM = Part("output_norm", "norm", ("hidden_size",), offset=1.0)


def _local_rope(settings: Settings) -> Mapping[str, Any]:
    """The rotary settings of layers with a window."""
    rope = settings.get("rope_parameters")
    given = rope.get(SLIDING) if isinstance(rope, dict) else None
    if isinstance(given, dict):
        return given
    return {"rope_theta": settings.get("rope_local_base_freq", _LOCAL_THETA)}


def _local_theta(settings: Settings) -> float | None:
    return float(_local_rope(settings).get("rope_theta", _LOCAL_THETA)) if window_of(settings) else None


def _scale_problem(settings: Settings, name: str) -> Iterator[str]:
    width = head_width(settings)
    if settings["num_hidden_layers"] == _WIDTH_BY_HIDDEN_SIZE[name]:
        width = settings["hidden_size"] // settings["num_attention_heads"]
    if settings["query_pre_attn_scalar"] != width:
        yield (
            f"query_pre_attn_scalar — got {shown(settings['query_pre_attn_scalar'])}; allowed {width}, the only value "
            f"that llama.cpp uses for {name} models with {settings['num_hidden_layers']} layers"
        )
    if settings.get("use_bidirectional_attention"):
        yield "use_bidirectional_attention — got true; allowed false"


def _cap_problem(settings: Settings, key: str) -> Iterator[str]:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        yield f"{key} — got {shown(value)}; allowed a number above 0"


def _problems_of_2(settings: Settings) -> Iterator[str]:
    yield from _scale_problem(settings, "gemma2")
    if not settings["tie_word_embeddings"]:
        yield "tie_word_embeddings — got false; allowed true: llama.cpp's gemma2 has no separate output head"
    yield from _cap_problem(settings, "attn_logit_softcapping")
    yield from _cap_problem(settings, "final_logit_softcapping")
    if window_of(settings) is None:
        yield (
            f"sliding_window — got {shown(settings.get('sliding_window'))}; allowed a whole number: llama.cpp's gemma2 "
            "always has windows"
        )


def _problems_of_3(settings: Settings) -> Iterator[str]:
    yield from _scale_problem(settings, "gemma3")
    if settings.get("attn_logit_softcapping") is not None:
        yield f"attn_logit_softcapping — got {shown(settings['attn_logit_softcapping'])}; allowed null"
    if settings.get("final_logit_softcapping") is not None:
        yield from _cap_problem(settings, "final_logit_softcapping")
    local = _local_rope(settings)
    kind = local.get("rope_type", "default")
    theta = local.get("rope_theta", _LOCAL_THETA)
    if kind != "default":
        yield f"rope_parameters.{SLIDING}.rope_type — got {shown(kind)}; allowed default"
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < float("inf"):
        yield f"rope_parameters.{SLIDING}.rope_theta — got {shown(theta)}; allowed a number above 0"


GEMMA2 = Architecture(
    "gemma2",
    _LAYER,
    (
        *KEYS,
        Key("attention.sliding_window", window_of),
        Key(
            "attention.sliding_window_pattern",
            lambda settings: window_pattern(settings, _PERIODS["gemma2"]),
            "bool_list",
        ),
        Key("attn_logit_softcapping", "attn_logit_softcapping", "float32"),
        Key("final_logit_softcapping", "final_logit_softcapping", "float32"),
    ),
    norm=_NORM,
    defaults={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    activation=_ACTIVATION,
    rope_kinds=("default", "linear"),
    windowed=True,
    problems=_problems_of_2,
)
GEMMA3 = Architecture(
    "gemma3",
    (*_LAYER, *_norms(*HEAD_NORMS)),
    (
        *KEYS,
        Key("attention.sliding_window", window_of),
        Key(
            "attention.sliding_window_pattern",
            lambda settings: window_pattern(settings, _PERIODS["gemma3"]),
            "bool_list",
        ),
        Key("rope.freq_base_swa", _local_theta, "float32"),
        Key("final_logit_softcapping", lambda settings: settings.get("final_logit_softcapping"), "float32"),
    ),
    norm=_NORM,
    defaults={
        "tie_word_embeddings": True,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "sliding_window": 4096,
    },
    activation=_ACTIVATION,
    rope_layers="full_attention",
    rope_kinds=("default", "linear"),
    windowed=True,
    problems=_problems_of_3,
)
GEMMA3_WITH_VISION = replace(
    GEMMA3,
    prefix="model.language_model.",
    stored=(
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        # adapters that were trained with the class of the language model alone
        ("model.layers.", "model.language_model.layers."),
        ("model.embed_tokens.", "model.language_model.embed_tokens."),
        ("model.norm.", "model.language_model.norm."),
    ),
    left_out={"model.vision_tower.": "vision", "model.multi_modal_projector.": "vision"},
)
