"""The values that 4-bit weights stand for are those of bitsandbytes, in models whose layers have any names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.stages.finetune import FinetuneStage

pytestmark = pytest.mark.torch
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", SIZES),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32}),
    "OPT": ("OPTForCausalLM", {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "GPTNeoX": ("GPTNeoXForCausalLM", SIZES),
    "Olmoe": ("OlmoeForCausalLM", {**SIZES, "num_experts": 2, "num_experts_per_tok": 1}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rounded_layers_are_those_that_bitsandbytes_quantizes(family: str, tmp_path: Path) -> None:
    import torch
    import transformers
    from bitsandbytes.functional import dequantize_4bit

    from engines.finetune.model import quantization_of
    from engines.training.precision import Precision
    from exporters.hf_model.tensor_files import SafetensorsFolder
    from exporters.lora.rounded_base import RoundedBase

    torch.manual_seed(1)
    name, settings = FAMILIES[family]
    made = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**settings))
    made.save_pretrained(tmp_path)
    stage = FinetuneStage.model_validate({"name": "x", "model": "m", "data": "d", "load_in_4bit": True})
    quantization = quantization_of(stage, Precision(bf16=False))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization)
    four: dict[str, Any] = {
        f"{layer}.weight": module for layer, module in model.named_modules() if type(module).__name__ == "Linear4bit"
    }
    base = SafetensorsFolder(tmp_path)
    rounded = RoundedBase(base, double=False)
    assert {tensor for tensor in base.tensors if rounded.rounds(tensor)} == set(four)
    assert four
    for tensor, module in four.items():
        wanted = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        found = rounded.read_rows(tensor, 0, base.tensors[tensor].shape[0])
        transposed = issubclass(module.source_cls, transformers.pytorch_utils.Conv1D)
        torch.testing.assert_close(found, wanted.t() if transposed else wanted, rtol=0, atol=0)


def test_rounding_a_merge_into_rounded_weights_again_loses_what_the_merge_added() -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def rounded(weights: torch.Tensor) -> torch.Tensor:
        return dequantize_4bit(*quantize_4bit(weights, quant_type="nf4", blocksize=64)).float()

    torch.manual_seed(1)
    base, added = torch.randn(256, 256), 2e-3 * torch.randn(256, 4) @ torch.randn(4, 256)

    def kept(weights: torch.Tensor) -> float:
        """The share of the adapter that is left in the direction of the adapter."""
        return float(((rounded(weights + added) - rounded(weights)) * added).sum() / (added * added).sum())

    assert kept(rounded(base)) < 0.05
    assert 0.5 < kept(base) < 1.5, "weights between the 4-bit values take some of it along, with a rounding of its own"
