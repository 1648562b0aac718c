"""Adapters that PEFT makes, and the weights of merged models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporters.hf_model.tensor_files import SafetensorsFolder

LINEAR = ["q_proj", "v_proj", "down_proj"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def adapt(folder: Path, base: Path, *, seed: int = 3, vocab: int = 0, **settings: Any) -> Any:
    """Save an adapter with every trained value changed to `folder`; return PEFT's live model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocab:
        model.resize_token_embeddings(vocab, mean_resizing=False)
    fields: dict[str, Any] = {"r": 8, "lora_alpha": 12, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(model, LoraConfig(**fields))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            elif parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return adapted


def peft_weights(adapted: Any) -> dict[str, Any]:
    """The weights after PEFT's own merge."""
    return dict(adapted.merge_and_unload().state_dict())


def ours(folder: Path) -> dict[str, Any]:
    """The weights of a model folder, with the head of a tied model."""
    import torch

    weights = SafetensorsFolder(folder)
    found = {name: torch.from_numpy(weights.read(name).copy()) for name in weights.tensors}
    if json.loads((folder / "config.json").read_text()).get("tie_word_embeddings") and EMBEDDING in found:
        found.setdefault(HEAD, found[EMBEDDING])
    return found


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two models' weights."""
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape for name in one)
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
