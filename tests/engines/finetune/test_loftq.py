"""LoftQ: the adapter begins with the nearest matrix of its rank to what 4 bits lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.training.precision import Precision
from recipes.stages.finetune import FinetuneStage
from tests.engines.training import tiny

pytestmark = pytest.mark.torch


def test_the_first_weights_are_the_best_of_their_rank_whatever_the_scale(tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors.torch import load_file

    from engines.finetune.model import add_adapter, load_base, quantization_of

    folder = tiny.write_model(tmp_path / "model")
    fields = {
        "init_lora_weights": "loftq",
        "load_in_4bit": True,
        "r": 4,
        "lora_alpha": 12.0,
        "rank_pattern": {"q_proj": 2},
    }
    stage = FinetuneStage.model_validate({"name": "x", "model": "m", "data": "d", **fields})
    model, _ = load_base(folder, quantization=quantization_of(stage, Precision(bf16=False)))
    adapted = add_adapter(model, stage, folder)
    exact = load_file(folder / "model.safetensors")
    layers: dict[str, Any] = {
        n: m for n, m in adapted.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A
    }
    assert len(layers) == 14
    for name, layer in layers.items():
        weight = exact[name.removeprefix("base_model.model.") + ".weight"].float()
        base = layer.base_layer.weight
        lost = weight - dequantize_4bit(base.data, base.quant_state).float().reshape(weight.shape)
        left = lost - layer.get_delta_weight("default").detach().float()
        rank = 2 if "q_proj" in name else 4
        best = torch.linalg.svdvals(lost)[rank:].square().sum().sqrt()
        assert float(left.norm()) == pytest.approx(float(best), rel=1e-3)
        assert float(left.norm()) < float(lost.norm())


def test_without_4_bits_it_is_refused() -> None:
    with pytest.raises(ValueError, match="loftq without load_in_4bit"):
        FinetuneStage.model_validate({"name": "x", "model": "m", "data": "d", "init_lora_weights": "loftq"})


def test_a_layer_that_is_stored_transposed_loses_less_too(tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    from engines.finetune.model import add_adapter, quantization_of

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=40, n_embd=64, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    fields = {"init_lora_weights": "loftq", "load_in_4bit": True, "r": 4, "target_modules": ["c_attn", "c_proj"]}
    stage = FinetuneStage.model_validate({"name": "x", "model": "m", "data": "d", **fields})
    quantization = quantization_of(stage, Precision(bf16=False))
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    adapted = add_adapter(model, stage, tmp_path)
    exact = load_file(tmp_path / "model.safetensors")
    found = [(n, m) for n, m in adapted.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A]
    assert len(found) == 3
    for name, layer in found:
        base = layer.base_layer.weight
        weight = exact[name.removeprefix("base_model.model.") + ".weight"].t()
        lost = weight - dequantize_4bit(base.data, base.quant_state).float()
        best = torch.linalg.svdvals(lost)[4:].square().sum().sqrt()
        assert float((lost - layer.get_delta_weight("default").detach()).norm()) == pytest.approx(float(best), rel=1e-3)
