"""The layers that get an adapter, in models whose layers have other names than a Llama's."""

from __future__ import annotations

from pathlib import Path
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

    model = add_adapter(Phi3ForCausalLM(Phi3Config(**SIZES)), stage(targets), Path())
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


def test_a_regular_expression_selects_by_whole_names_and_a_name_in_its_place_is_refused() -> None:
    assert adapted(r".*\.(qkv|down)_proj") == {"qkv_proj", "down_proj"}
    with pytest.raises(OperatorError, match=r"no linear layer of the model is selected by .*\[qk\]_proj"):
        adapted(r".*\.[qk]_proj")
    with pytest.raises(ValueError, match="valid list"):
        stage("qkv_proj")
    with pytest.raises(ValueError, match="can compute for hours"):
        stage("(a.*b.*)*.*c.*")
    with pytest.raises(ValueError, match="cannot be combined with names"):
        stage([r".*\.q_proj", "o_proj"])


def test_ranks_scales_and_layers_are_those_of_the_patterns_as_in_peft() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    from engines.finetune.model import add_adapter

    fields = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 6.0}, "r": 2}
    chosen = stage("all-linear").model_copy(update={**fields, "lora_alpha": 4.0, "layers_to_transform": [1]})
    model = add_adapter(Phi3ForCausalLM(Phi3Config(**{**SIZES, "num_hidden_layers": 2})), chosen, Path())
    found = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert {name.split(".")[2] for name in found} == {"1"}
    for name, layer in found.items():
        assert chosen.adapts(name, "lm_head")
        assert layer.r["default"] == chosen.rank_of(name) == (3 if "down" in name else 2)
        assert layer.scaling["default"] == pytest.approx(2.0)
    assert not chosen.adapts("model.layers.0.mlp.down_proj", "lm_head")


def test_a_pattern_that_names_no_adapted_layer_is_refused() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    from engines.finetune.model import add_adapter

    wrong = stage(["o_proj"]).model_copy(update={"rank_pattern": {"down_proj": 3}})
    with pytest.raises(OperatorError, match="rank_pattern — no layer with an adapter is named down_proj"):
        add_adapter(Phi3ForCausalLM(Phi3Config(**SIZES)), wrong, Path())


def test_a_number_that_no_decoder_layer_has_is_refused_and_not_left_out() -> None:
    from transformers import Phi3Config, Phi3ForCausalLM

    from engines.finetune.model import add_adapter

    config = Phi3Config(**{**SIZES, "num_hidden_layers": 2})
    wrong = stage(["o_proj"]).model_copy(update={"layers_to_transform": [1, 2]})  # counted from 1
    with pytest.raises(OperatorError, match="layers_to_transform — no decoder layer of the model has the number 2"):
        add_adapter(Phi3ForCausalLM(config), wrong, Path())


def adapted_in_deepseek(targets: Any) -> tuple[set[str], set[str], list[str]]:
    """Layers and parameters with an adapter in a DeepSeek whose first layer is dense, and warnings."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    from engines.finetune.model import add_adapter

    config = DeepseekV3Config(
        **SIZES,
        moe_intermediate_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=4,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    warnings: list[str] = []
    model = add_adapter(DeepseekV3ForCausalLM(config), stage(targets), Path(), warn=warnings.append)
    names = {
        n.split(".lora_A")[0].removeprefix("base_model.model.model.")
        for n, _ in model.named_parameters()
        if "lora_A" in n
    }
    return names, set(model.peft_config["default"].target_parameters or ()), warnings


def test_all_linear_layers_of_a_model_with_experts_get_adapters_that_a_merge_reads() -> None:
    names, parameters, warnings = adapted_in_deepseek("all-linear")
    attention = {f"layers.{n}.self_attn.{name}" for n in (0, 1) for name in ("q_proj", "kv_b_proj", "o_proj")}
    assert names >= attention
    assert not any("experts" in name for name in names)
    assert parameters == set()
    assert warnings == [
        "layers named down_proj, gate_proj, up_proj get no adapter: PEFT takes these names for the model's experts,"
        " whose adapters cannot be merged"
    ]


def test_a_name_that_peft_takes_for_experts_is_refused() -> None:
    with pytest.raises(OperatorError, match="PEFT takes gate_proj for the model's experts"):
        adapted_in_deepseek(["q_proj", "gate_proj"])
    with pytest.raises(OperatorError, match=r"PEFT takes model\.layers\.0\.mlp\.down_proj for the model's experts"):
        adapted_in_deepseek(r".*layers\.0\.mlp\.down_proj")


@pytest.mark.parametrize("name", ["experts", "mlp.experts"])
def test_experts_that_transformers_joins_are_not_trained_as_a_whole(name: str) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from engines.finetune.model import add_adapter

    config = Qwen3MoeConfig(**SIZES, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, head_dim=8)

    def adapted_with(saved: list[str]) -> Any:
        chosen = stage(["q_proj"]).model_copy(update={"modules_to_save": saved})
        return add_adapter(Qwen3MoeForCausalLM(config), chosen, Path())

    with pytest.raises(OperatorError, match=f"modules_to_save — {name}: transformers joins this layer") as caught:
        adapted_with([name])
    assert "output = " in caught.value.hint
    with pytest.raises(OperatorError, match="no layer with weights of its own is named mlp"):
        adapted_with(["mlp"])
    trained = {n for n, weight in adapted_with(["gate"]).named_parameters() if weight.requires_grad}
    assert sum("gate.modules_to_save" in n for n in trained) == 2


def test_a_pattern_selects_the_same_layers_in_a_model_with_experts() -> None:
    assert adapted_in_deepseek(r".*layers\.1\.self_attn\.o_proj") == ({"layers.1.self_attn.o_proj"}, set(), [])


def test_the_linear_layers_of_gpt2_are_adapted_though_their_class_is_another_one() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from engines.finetune.model import add_adapter

    def layers(targets: Any) -> set[str]:
        base = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
        model = add_adapter(base, stage(targets), Path())
        return {n.split(".lora_A")[0].rpartition("h.0.")[2] for n, _ in model.named_parameters() if "lora_A" in n}

    assert layers("all-linear") == {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    assert layers(["c_attn"]) == {"attn.c_attn"}
    assert layers(r".*mlp\.c_proj") == {"mlp.c_proj"}
