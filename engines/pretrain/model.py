"""A Llama-type decoder with the stage's shape and new weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.stages.pretrain import PretrainStage


def build_model(stage: PretrainStage, *, vocab_size: int, bos_id: int | None, eos_id: int) -> Any:
    """Initialize the model from the global random state; weights are float32.

    Args:
        stage: the shape.
        vocab_size: every token id is below this.
        bos_id: the tokenizer's begin-of-sequence token; None without one.
        eos_id: the token that ends every document.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=stage.hidden_size,
        intermediate_size=stage.intermediate_size,
        num_hidden_layers=stage.num_hidden_layers,
        num_attention_heads=stage.num_attention_heads,
        num_key_value_heads=stage.num_key_value_heads,
        max_position_embeddings=stage.max_length,
        rope_theta=stage.rope_theta,
        rms_norm_eps=stage.rms_norm_eps,
        tie_word_embeddings=stage.tie_word_embeddings,
        attention_dropout=stage.attention_dropout,
        initializer_range=stage.initializer_range,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.bos_token_id = bos_id
    model.generation_config.eos_token_id = eos_id
    model.generation_config.pad_token_id = eos_id
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    return model
