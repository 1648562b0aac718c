"""One small random model of each family, with what is special about the family switched on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.exporters.small_models import build_byte_level_tokenizer, build_model, save_sharpened

GEMMA: dict[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 40,
    "rms_norm_eps": 1e-6,
}
"""The window is shorter than the compared texts, so that a file without it would answer differently."""
GEMMA3: dict[str, Any] = {
    **GEMMA,
    "final_logit_softcapping": 20.0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_hidden_layers": 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    },
}
MINISTRAL3: dict[str, Any] = {
    "head_dim": 32,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 48,
        "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4,
    },
}  # fmt: skip
"""The compared texts are longer than the original context, from which on the queries grow."""
PHI3: dict[str, Any] = {
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75,
        "short_factor": [1.0 + 0.1 * n for n in range(12)], "long_factor": [1.0 + 0.5 * n for n in range(12)],
    },
}  # fmt: skip
QWEN3_MOE: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True, "head_dim": 32,
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 256, "head_dim": 32, "sliding_window": 40,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 8.0, "original_max_position_embeddings": 48,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    },
}  # fmt: skip
NETWORK: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def _gemma3_with_vision(folder: Path, tokenizer: Path) -> Path:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    eyes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config={**NETWORK, **GEMMA3}, vision_config=eyes, mm_tokens_per_image=4, bos_token_id=1, eos_token_id=2
    )
    return save_sharpened(Gemma3ForConditionalGeneration, config, folder, tokenizer)


def _mistral3_with_vision(folder: Path, tokenizer: Path) -> Path:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    eyes = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Mistral3Config(
        text_config={"model_type": "ministral3", **NETWORK, **MINISTRAL3},
        vision_config=eyes,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return save_sharpened(Mistral3ForConditionalGeneration, config, folder, tokenizer)


def _gpt_oss(folder: Path, tokenizer: Path) -> Path:
    """Its sinks, router and experts are parameters without names that the usual sharpening knows."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(**{**NETWORK, **GPT_OSS})
    made = GptOssForCausalLM(config)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("sinks", "router.weight", "router.bias", "_proj_bias")):
                parameter.normal_(0, 0.5)
            elif ".experts." in name:
                parameter.mul_(2)
    return save_sharpened(lambda _config: made, config, folder, tokenizer)


def _qwen2(folder: Path, _tokenizer: Path) -> Path:
    """transformers gives a Qwen2 model its own class of tokenizer, which is byte-level."""
    words = build_byte_level_tokenizer(folder.with_name(f"{folder.name}-words"))
    return build_model(folder, words, family="Qwen2")


def _plain(family: str, config: str = "", **fields: Any) -> Callable[[Path, Path], Path]:
    return lambda folder, tokenizer: build_model(folder, tokenizer, family=family, config=config, **fields)


FAMILIES: dict[str, Callable[[Path, Path], Path]] = {
    "Gemma2ForCausalLM": _plain("Gemma2", **GEMMA, final_logit_softcapping=20.0, attn_logit_softcapping=12.0),
    "Gemma3ForCausalLM": _plain("Gemma3", "Gemma3Text", **GEMMA3),
    "Gemma3ForConditionalGeneration": _gemma3_with_vision,
    "GptOssForCausalLM": _gpt_oss,
    "GraniteForCausalLM": _plain(
        "Granite",
        attention_bias=True,
        attention_multiplier=0.25,
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "LlamaForCausalLM": _plain("Llama"),
    "Ministral3ForCausalLM": _plain("Ministral3", **MINISTRAL3, tie_word_embeddings=False),
    "Mistral3ForConditionalGeneration": _mistral3_with_vision,
    "MistralForCausalLM": _plain("Mistral", sliding_window=60),
    "Olmo2ForCausalLM": _plain("Olmo2", tie_word_embeddings=False),
    "Phi3ForCausalLM": _plain("Phi3", **PHI3),
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _plain("Qwen3"),
    "Qwen3MoeForCausalLM": _plain("Qwen3Moe", **QWEN3_MOE),
    "SmolLM3ForCausalLM": _plain("SmolLM3", num_hidden_layers=4, attention_bias=False),
}
"""By the class name in `architectures`; each writes a model to a folder, with the given tokenizer's files."""
TARGETS = {
    "GptOssForCausalLM": ("q_proj", "v_proj", "o_proj"),
    "Phi3ForCausalLM": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "Qwen3MoeForCausalLM": ("q_proj", "v_proj", "o_proj"),
}
"""What an adapter changes, for families whose linear layers have other names than Llama's."""
