"""The layers that get an adapter, in models whose layers have other names than a Llama's."""

from __future__ import annotations

from typing import Any

import pytest

from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage

pytestmark = pytest.mark.torch
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def stage(targets: Any) -> FinetuneStage:
    return FinetuneStage.model_validate({"name": "x", "model": "m", "data": "d", "target_modules": targets})


def adapted(targets: Any) -> set[str]:
    """The last parts of the names of the adapted layers of a small Phi-3."""
    from transformers import Phi3Config, Phi3ForCausalLM

    from engines.finetune.model import add_adapter

    model = add_adapter(Phi3ForCausalLM(Phi3Config(**SIZES)), stage(targets))
    return {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}


def test_all_linear_adapts_every_linear_layer_but_the_head() -> None:
    assert adapted("all-linear") == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert stage("all-linear").target_modules == stage(["all-linear"]).target_modules


def test_fused_projections_and_dotted_names_are_adapted_by_name() -> None:
    assert adapted(["qkv_proj", "mlp.down_proj"]) == {"qkv_proj", "down_proj"}


def test_a_name_without_a_linear_layer_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(OperatorError, match=r"no linear layer named q_proj, attn\.o_proj") as caught:
        adapted(["q_proj", "o_proj", "attn.o_proj"])
    assert caught.value.hint == "its linear layers are down_proj, gate_up_proj, lm_head, o_proj, qkv_proj"
