"""The model types that pretraining can make: dense decoders of transformers whose GGUF files Cockpit can write.

Qwen2 is not among them: transformers reads every tokenizer beside such a model as Qwen's, whatever its files say.

A row says what a type has beyond GQA, SwiGLU, rotary positions and RMSNorm, as transformers' own classes have it. To
add one, add a row here; `tests/engines/training/test_decoders.py` compares each with the real model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RopeType = Literal["default", "linear", "yarn", "llama3"]
ModelType = Literal["llama", "mistral", "qwen3", "olmo2"]

LINEAR, TERNARY = "linear", "ternary"
"""Field of a stage, and key in config.json of a checkpoint whose matrices are rounded when they compute; its value."""
INPUT_NORM, SECOND_NORM = "input_layernorm", "post_attention_layernorm"
ROPE_TYPES: tuple[RopeType, ...] = ("default", "linear", "yarn")


@dataclass(frozen=True)
class DecoderType:
    """One model type.

    Attributes:
        class_name: transformers' class, as `architectures` of config.json names it.
        norms: the norms of a layer by their module, each with its width: a field or property of `Sizes`.
        free_head_width: `head_dim` may be another width than hidden_size / num_attention_heads.
        any_heads: with `head_dim`, hidden_size need not be a multiple of num_attention_heads.
        window: settings beside `sliding_window` that put a window on every layer; None if the type has no windows.
        no_window: settings that keep windows off.
        tied: embedding and output head may be one matrix.
        rope_types: the kinds of rotary positions that its GGUF files can have.
    """

    class_name: str
    norms: Mapping[str, str] = field(default_factory=lambda: {INPUT_NORM: "hidden_size", SECOND_NORM: "hidden_size"})
    free_head_width: bool = True
    any_heads: bool = True
    window: Mapping[str, Any] | None = None
    no_window: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = True
    rope_types: tuple[RopeType, ...] = ROPE_TYPES


MODEL_TYPES: Mapping[ModelType, DecoderType] = {
    "llama": DecoderType("LlamaForCausalLM", any_heads=False, rope_types=("default", "linear", "yarn", "llama3")),
    "mistral": DecoderType("MistralForCausalLM", window={}, no_window={"sliding_window": None}),
    "qwen3": DecoderType(
        "Qwen3ForCausalLM",
        norms={
            INPUT_NORM: "hidden_size",
            SECOND_NORM: "hidden_size",
            "self_attn.q_norm": "head_dim",
            "self_attn.k_norm": "head_dim",
        },
        window={"use_sliding_window": True, "max_window_layers": 0},
    ),
    "olmo2": DecoderType(
        "Olmo2ForCausalLM",
        norms={
            SECOND_NORM: "hidden_size",
            "post_feedforward_layernorm": "hidden_size",
            "self_attn.q_norm": "queries",
            "self_attn.k_norm": "keys",
        },
        free_head_width=False,
        tied=False,
    ),
}
