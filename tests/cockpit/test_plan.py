from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.plan import StagePlan, plan
from recipes.load import load_recipe, load_recipe_text
from recipes.shipped import shipped_recipes

TEXT = """schema = 1
name = "small"
[[stage]]
name = "corpus"
kind = "prepare"
output = "text"
source = "python-stdlib"
[[stage]]
name = "words"
kind = "tokenizer"
data = "corpus"
vocab_size = 512
[[stage]]
name = "shards"
kind = "prepare"
output = "tokens"
data = "corpus"
tokenizer = "words"
[[stage]]
name = "base"
kind = "pretrain"
data = "shards"
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
tie_word_embeddings = %(tied)s
max_steps = 250
save_steps = 100
per_device_train_batch_size = 4
gradient_accumulation_steps = 3
max_length = 32
[[stage]]
name = "questions"
kind = "prepare"
output = "messages"
data = "corpus"
[[stage]]
name = "tuned"
kind = "finetune"
model = "base"
data = "questions"
r = 8
target_modules = ["q_proj", "v_proj", "down_proj"]
"""


def planned(tied: bool) -> dict[str, StagePlan]:
    made = plan(load_recipe_text(TEXT % {"tied": str(tied).lower()}, "small.toml").recipe)
    return {stage.name: stage for stage in made.stages}


def test_steps_tokens_and_checkpoints_are_computed_where_they_are_known() -> None:
    stages = planned(tied=True)
    base = stages["base"]
    assert (base.steps, base.tokens_per_step, base.tokens, base.checkpoints) == (250, 4 * 3 * 32, 250 * 384, 3)
    assert base.parameters is not None
    assert base.checkpoint_bytes == base.parameters * 12
    tuned = stages["tuned"]
    assert (tuned.steps, tuned.tokens_per_step, tuned.tokens, tuned.checkpoints) == (None, None, None, None)
    assert stages["corpus"] == StagePlan("corpus", "prepare")


@pytest.mark.torch
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_are_those_of_the_real_models(tied: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**config, **heads, tie_word_embeddings=tied))
    stages = planned(tied)
    assert stages["base"].parameters == sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    assert stages["tuned"].trainable_parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert stages["tuned"].parameters == stages["base"].parameters


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_plan(path: Path) -> None:
    made = plan(load_recipe(path).recipe).to_json()
    assert made["format"] == 1
    assert [stage["name"] for stage in made["stages"]] == [stage.name for stage in load_recipe(path).recipe.stage]
