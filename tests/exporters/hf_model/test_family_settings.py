"""Settings that a family's GGUF file cannot express are refused by key, with what llama.cpp computes instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporters.hf_model.architectures import architecture_of, language_settings
from recipes.problems import OperatorError

NETWORK: dict[str, Any] = {
    "vocab_size": 640, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "hidden_activation": "gelu_pytorch_tanh"}
CORRECT: dict[str, dict[str, Any]] = {
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": {**GEMMA, "sliding_window": 64},
    "GraniteForCausalLM": {},
    "Ministral3ForCausalLM": {
        "model_type": "ministral3",
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "Olmo2ForCausalLM": {},
    "Phi3ForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "Qwen3ForCausalLM": {},
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar — got 64; allowed 32"),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "attn_logit_softcapping — got None; allowed a number"),
    (
        "Gemma2ForCausalLM",
        {"sliding_window": None},
        "sliding_window — got None; allowed a whole number: llama.cpp's gemma2",
    ),
    ("Gemma2ForCausalLM", {"tie_word_embeddings": False}, "gemma2 has no separate output head"),
    ("Gemma2ForCausalLM", {"hidden_activation": "silu"}, 'hidden_activation — got "silu"; allowed gelu_pytorch_tanh'),
    ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping — got 50.0; allowed null"),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention — got true"),
    ("Gemma3ForCausalLM", {"layer_types": ["full_attention"]}, "layer_types — got"),
    ("Gemma3ForCausalLM", {"sliding_window": -1}, "sliding_window — got -1; allowed a whole number, or null"),
    (
        "Gemma3ForCausalLM",
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        'rope_parameters.sliding_attention.rope_type — got "linear"; allowed default',
    ),
    (
        "Gemma3ForCausalLM",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}},
        'rope_parameters.full_attention.rope_type — got "yarn"; allowed default, linear',
    ),
    ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling — got 0; allowed a number above 0"),
    (
        "Ministral3ForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "llama_4_scaling_beta — got None; allowed a number above 0",
    ),
    ("Olmo2ForCausalLM", {"tie_word_embeddings": True}, "olmo2 has no tied output head"),
    ("Olmo2ForCausalLM", {"head_dim": 64}, "head_dim — got 64; olmo2 files require"),
    (
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [1.0] * 3}},
        "rope_parameters.long_factor — got [1.0, 1.0, 1.0]; allowed 16 numbers above 0",
    ),
    ("Phi3ForCausalLM", {"rope_parameters": {"partial_rotary_factor": 2}}, "partial_rotary_factor — got 2; allowed"),
    ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0]}, "no_rope_layers — got [1, 0, 1, 0]; allowed 0 for every"),
    ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 3}, "no_rope_layer_interval — got 3; allowed 4"),
    ("Qwen3ForCausalLM", {"rope_parameters": LLAMA3}, 'rope_type — got "llama3"; allowed default, linear, yarn'),
]


@pytest.mark.parametrize("family", CORRECT)
def test_the_settings_without_a_fault_are_allowed(family: str, tmp_path: Path) -> None:
    architecture_of(tmp_path, {"architectures": [family], **NETWORK, **CORRECT[family]})


@pytest.mark.parametrize(("family", "fields", "named"), REFUSED)
def test_a_setting_that_the_file_cannot_express_is_refused_by_key(
    family: str, fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(OperatorError) as caught:
        architecture_of(tmp_path, {"architectures": [family], **NETWORK, **CORRECT[family], **fields})
    assert named in caught.value.message


def test_defaults_of_a_family_stand_for_settings_that_config_json_lacks() -> None:
    """As the published config of Gemma 3 4B, which has four settings of its language model."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    settings = language_settings({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    assert (settings["num_attention_heads"], settings["num_key_value_heads"], settings["head_dim"]) == (8, 4, 256)
    assert settings["vocab_size"] == 262_208
    assert settings["tie_word_embeddings"] is True
    architecture_of(Path("model"), {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
