"""A decoder with the stage's shape and new weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoConfig

from recipes.stages.pretrain import PretrainStage


def build_model(stage: PretrainStage, *, vocab_size: int, bos_id: int | None, eos_id: int) -> Any:
    """Initialize the model from the global random state; weights are float32.

    Args:
        stage: the shape.
        vocab_size: every token id is below this.
        bos_id: the tokenizer's begin-of-sequence token; None without one.
        eos_id: the token that ends every document.
    """
    config = AutoConfig.for_model(
        stage.model_type,
        vocab_size=vocab_size,
        **stage.config(),
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
        dtype="float32",
    )
    model = getattr(transformers, stage.decoder.class_name)(config)
    model.generation_config.bos_token_id = bos_id
    model.generation_config.eos_token_id = eos_id
    model.generation_config.pad_token_id = eos_id
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    return model
