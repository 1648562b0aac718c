from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.planning.stages import StagePlan, plan
from recipes.load import load_recipe, load_recipe_text
from recipes.shipped import shipped_recipes
from recipes.stages.pretrain import PretrainStage

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
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj", "down_proj"], "all-linear", ["lm_head", "layers.1.self_attn.o_proj"]]
)
def test_parameter_counts_are_those_of_the_real_models(tied: bool, targets: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config: dict[str, Any] = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**config, **heads, tie_word_embeddings=tied))
    text = TEXT.replace('["q_proj", "v_proj", "down_proj"]', json.dumps(targets)) % {"tied": str(tied).lower()}
    stages = {stage.name: stage for stage in plan(load_recipe_text(text, "small.toml").recipe).stages}
    assert stages["base"].parameters == sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=targets))
    assert stages["tuned"].trainable_parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert stages["tuned"].parameters == stages["base"].parameters


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_every_shipped_recipe_has_a_plan(path: Path) -> None:
    recipe = load_recipe(path, paths_here=False).recipe
    made = plan(recipe).to_json()
    assert made["format"] == 1
    assert [stage["name"] for stage in made["stages"]] == [stage.name for stage in recipe.stage]


EXPORT = """
[[stage]]
name = "merged"
kind = "merge"
model = "base"
adapter = "tuned"
[[stage]]
name = "gguf"
kind = "export"
model = "merged"
file_types = ["F16", "Q8_0", "Q4_K_M", "IQ2_XS"]
"""


@pytest.mark.torch
def test_the_files_of_an_export_are_known_to_the_byte_before_the_model_exists(tmp_path: Path) -> None:
    from exporters.gguf.write import read_model
    from tests.exporters.small_models import build_model, build_tokenizer

    text = TEXT % {"tied": "true"} + EXPORT
    loaded = load_recipe_text(text, "small.toml")
    files = {file.file_type: file for file in plan(loaded.recipe).files}
    base = next(stage for stage in loaded.recipe.stage if stage.name == "base")
    assert isinstance(base, PretrainStage)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    folder = build_model(
        tmp_path / "model", build_tokenizer(tmp_path / "tokenizer"), **{name: getattr(base, name) for name in names}
    )
    model = read_model(folder)
    # Only the embedding differs: the small model has another vocabulary than the recipe's.
    rows = 512 - int(model.config["vocab_size"])
    for name, file in files.items():
        real = model.plan(name, importance=name == "IQ2_XS")
        embedding = next(choice for choice in real.choices if choice.shape.name == "token_embd.weight")
        assert file.bytes == real.bytes + embedding.bytes // embedding.shape.rows * rows, name
        assert file.fallbacks == len(real.fallbacks)


def test_a_recipe_whose_widths_defeat_a_type_is_flagged_when_it_is_checked() -> None:
    made = plan(load_recipe_text(TEXT % {"tied": "true"} + EXPORT, "small.toml").recipe)
    files = {file.file_type: file for file in made.files}
    assert files["F16"].warning == ""
    assert files["Q8_0"].fallbacks == 0
    flagged = files["Q4_K_M"]
    assert flagged.fallbacks == 3 * 7, "every projection"
    assert flagged.bits_per_weight > 6
    assert "multiples of 256 for hidden_size (64) and intermediate_size (96) would avoid this" in flagged.warning
    assert made.to_json()["files"][2]["warning"] == flagged.warning


@pytest.mark.parametrize("through", ["a folder", "a merge"])
def test_the_files_of_a_model_folder_are_known_and_flagged_too(through: str, tmp_path: Path) -> None:
    config = {
        "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 512,
    }  # fmt: skip
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    merged = '[[stage]]\nname = "merged"\nkind = "merge"\nmodel = "./model"\nadapter = "./adapter"\n\n'
    model, before = ("merged", merged) if through == "a merge" else ("./model", "")
    export = f'[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "{model}"\nfile_types = ["F16", "Q4_K_M"]\n'
    loaded = load_recipe_text(f'schema = 1\nname = "x"\n\n{before}{export}', tmp_path / "x.toml")
    plain, narrow = plan(loaded.recipe, loaded.graph).files
    assert (plain.file_type, plain.warning) == ("F16", "")
    assert narrow.fallbacks > 0
    assert "Q4_K_M" in narrow.warning


def test_own_types_and_a_size_are_planned_and_a_wrong_name_is_flagged_before_the_model_is_trained() -> None:
    own = 'file_types = ["F16", "Q4_K_M"]\ntensor_types = { ffn_dwn = "Q6_K", token_embd = "F16" }\ntarget_bits = 6.5\n'
    text = TEXT % {"tied": "true"} + EXPORT.partition("file_types")[0] + own
    plain, quantized, target = plan(load_recipe_text(text, "small.toml").recipe).files
    assert plain.warning == "tensor_types.ffn_dwn — the model has no such matrix; did you mean ffn_down?"
    usual = plan(load_recipe_text(TEXT % {"tied": "true"} + EXPORT, "small.toml").recipe).files[2]
    assert quantized.bytes != usual.bytes
    assert (target.file_type, target.bits_per_weight) == ("BPW6_5", 6.5)
    assert target.bytes == pytest.approx(plain.bytes * 6.5 / plain.bits_per_weight, rel=0.01)
