"""Model folders that a recipe names are checked before a run is created."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.launch import launch, launch_text
from cockpit.planning.model_check import check_models
from recipes.load import load_recipe
from recipes.problems import OperatorError, RecipeError
from recipes.shipped import shipped_recipes
from tests.cockpit.command_line import CommandLine

GOOD: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": 256,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8}
EXPORT = (
    'schema = 1\nname = "x"\n\n[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "./model"\ndata = '
    '"./text"\nfile_types = ["F16"]\n'
)
MERGE = 'schema = 1\nname = "x"\n\n[[stage]]\nname = "merged"\nkind = "merge"\nmodel = "./model"\nadapter = "./tuned"\n'


def recipe(folder: Path, text: str, **fields: Any) -> Path:
    (folder / "model").mkdir()
    (folder / "text").mkdir()
    (folder / "tuned").mkdir()
    (folder / "tuned" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "tuned" / "adapter_model.safetensors").touch()
    (folder / "model" / "config.json").write_text(json.dumps(GOOD | fields))
    path = folder / "r.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("text", [EXPORT, MERGE])
def test_a_sound_folder_passes(tmp_path: Path, text: str) -> None:
    check_models(load_recipe(recipe(tmp_path, text)))


def test_all_problems_of_a_folder_are_located_in_the_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, EXPORT, rms_norm_eps=7, rope_parameters=YARN, num_key_value_heads=3)
    line = CommandLine(tmp_path)
    done = line.run("check", str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2, "head groups are checked only when both counts are numbers"
    assert all(f"{path}:7  gguf.model — {tmp_path}/model/config.json: " in words for words in lines)
    assert "rms_norm_eps — got 7" in lines[0]
    assert "rope_parameters.beta_fast — got 8; allowed 32" in lines[1]
    report = json.loads(line.run("check", "--json", str(path)).stdout)
    assert [problem["line"] for problem in report["problems"]] == [7, 7]


def test_a_launch_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    path = recipe(tmp_path, EXPORT, architectures=["GPT2LMHeadModel"])
    with pytest.raises(RecipeError, match="GPT2LMHeadModel"):
        launch(path, runs_root=tmp_path / "runs")
    with pytest.raises(OperatorError, match=r"^.*model/config.json: architectures") as caught:
        launch_text(EXPORT, runs_root=tmp_path / "runs", folder=tmp_path)
    assert "recipe.toml" not in caught.value.message, "no file that is not there"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", [EXPORT, MERGE])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantized weights \(bitsandbytes\)"),
        ({"num_hidden_layers": 2**60}, "num_hidden_layers — got 1152921504606846976; allowed at most 512"),
    ],
)
def test_a_quantized_base_or_one_of_impossible_size_is_reported_for_merge_and_export(
    tmp_path: Path, text: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(RecipeError, match=named):
        check_models(load_recipe(recipe(tmp_path, text, **fields)))


def test_every_stage_refuses_a_model_of_impossible_size(tmp_path: Path) -> None:
    text = EXPORT.replace("export", "evaluate").replace('file_types = ["F16"]\n', "")
    with pytest.raises(RecipeError, match="hidden_size — got 1152921504606846976"):
        check_models(load_recipe(recipe(tmp_path, text, hidden_size=2**60)))
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"model has no config\.json, so it is not a model folder"):
        check_models(load_recipe(tmp_path / "r.toml"))


@pytest.mark.parametrize("content", [None, "[]", "{", "[" * 100_000, '{"architectures": "\x1b[2J"}'])
def test_a_config_that_cannot_be_read_is_reported(tmp_path: Path, content: str | None) -> None:
    path = recipe(tmp_path, EXPORT)
    config = tmp_path / "model" / "config.json"
    if content is None:
        config.unlink()
    else:
        config.write_text(content)
    with pytest.raises(RecipeError, match=r"gguf\.model") as caught:
        check_models(load_recipe(path))
    assert "\x1b" not in caught.value.message


FOUR_BIT = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
ADAPTER = r"is an adapter.*merge it first.*set model to its base \(org/base\) and start_from"
TUNE = 'schema = 1\nname = "x"\n\n[[stage]]\nname = "tuned"\nkind = "finetune"\nmodel = "./model"\ndata = "./text"\n'


def fused(folder: Path, targets: str) -> Path:
    """A recipe that trains a model with fused projections, as Phi-3 has them."""
    path = recipe(folder, TUNE + f"target_modules = {targets}\n")
    parts = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.experts.0.down_proj")
    shapes = {f"model.layers.0.{part}.weight": [4, 4] for part in parts}
    shapes |= {"model.layers.0.mlp.gate.weight": [2, 4]}
    shapes |= {"model.norm.weight": [4], "model.embed_tokens.weight": [8, 4]}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (folder / "model" / "tokenizer.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return path


def test_a_number_that_no_decoder_layer_has_is_located_and_not_left_out(tmp_path: Path) -> None:
    path = fused(tmp_path, '["o_proj"]\nlayers_to_transform = [0, 1]')
    with pytest.raises(RecipeError, match=r'layers_to_transform\[1\] — no decoder layer .* number; got "1"; .* 0 to 0'):
        check_models(load_recipe(path))


@pytest.mark.parametrize("targets", ['["qkv_proj", "o_proj"]', '"all-linear"', '["self_attn.o_proj"]', '["lm_head"]'])
def test_any_names_that_the_model_has_are_targets(tmp_path: Path, targets: str) -> None:
    check_models(load_recipe(fused(tmp_path, targets)))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ('["o_proj", "q_proj"]', r'target_modules\[1\] — no linear layer .* has this name; got "q_proj"'),
        ('["attn.o_proj"]', r'\[0\].*got "attn.o_proj"'),
        ('["norm"]', "the model has lm_head, o_proj, qkv_proj, or use all-linear"),
        ('["embed_tokens"]', r'\[0\].*got "embed_tokens"'),
        ('["qvk_proj"]', "did you mean qkv_proj"),
        ('["gate"]', r'\[0\].*got "gate"'),  # the router of the experts
        ('["down_proj"]', r'\[0\].*got "down_proj"'),  # of experts only, which transformers joins
    ],
)
def test_a_target_that_the_model_lacks_is_located_before_a_run_is_made(
    tmp_path: Path, targets: str, message: str
) -> None:
    path = fused(tmp_path, targets)
    with pytest.raises(RecipeError, match=message):
        launch(path, runs_root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(path))
    assert caught.value.problems[0].line == 9
    text = path.read_text()
    with pytest.raises(OperatorError, match="target_modules — no linear layer of the model has this name; got"):
        launch_text(text + "# unsaved\n", runs_root=tmp_path / "runs", folder=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: (model / "config.json").write_text(json.dumps(GOOD | FOUR_BIT)), "use the 16-bit base model"),
        (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
        (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda model: (model / "config.json").unlink(), "has no config.json, so it is not a model folder"),
        (lambda model: (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}'), ADAPTER),
    ],
)
def test_a_folder_that_training_could_not_use_is_refused_at_its_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    path = fused(tmp_path, '"all-linear"')
    check_models(load_recipe(path))
    spoil(tmp_path / "model")
    with pytest.raises(RecipeError, match=message) as caught:
        check_models(load_recipe(path))
    assert [(problem.line, problem.key) for problem in caught.value.problems] == [(7, "tuned.model")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'modules_to_save = ["embed_token"]',
            r'modules_to_save\[0\] — no layer .*"embed_token".*did you mean embed_tokens',
        ),
        ('load_in_4bit = true\nllm_int8_skip_modules = ["o_proj", "norm"]', r"skip_modules\[1\] — no linear layer"),
    ],
)
def test_layers_to_save_or_to_keep_unquantized_that_the_model_lacks_are_located(
    tmp_path: Path, line: str, message: str
) -> None:
    path = fused(tmp_path, '"all-linear"')
    kept = '\nmodules_to_save = ["norm", "lm_head"]\nllm_int8_skip_modules = ["self_attn.qkv_proj", "o_proj"]\n'
    text = path.read_text()
    path.write_text(f"{text}{kept}load_in_4bit = true\n")
    check_models(load_recipe(path))
    path.write_text(f"{text}{line}\n")
    with pytest.raises(RecipeError, match=message) as caught:
        check_models(load_recipe(path))
    assert [problem.line for problem in caught.value.problems] == [9 + line.count("\n") + 1]


def test_experts_to_save_are_refused_with_the_reason_of_the_engine(tmp_path: Path) -> None:
    from recipes.stages.adapter.fields import JOINED

    path = fused(tmp_path, '["qkv_proj"]')
    path.write_text(path.read_text() + 'modules_to_save = ["mlp.experts", "down_proj", "self_attn"]\n')
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(path))
    found = [one for one in caught.value.problems if "modules_to_save" in one.key]
    assert [(one.key, one.message) for one in found] == [
        ("tuned.modules_to_save[0]", JOINED),
        ("tuned.modules_to_save[1]", "no layer with weights of its own of the model has this name"),
        ("tuned.modules_to_save[2]", "no layer with weights of its own of the model has this name"),
    ]


def test_an_adapter_may_be_evaluated(tmp_path: Path) -> None:
    path = recipe(tmp_path, TUNE.replace("finetune", "evaluate").replace("./model", "./tuned"))
    check_models(load_recipe(path))


def test_targets_in_a_model_that_the_recipe_trains_are_those_of_a_llama() -> None:
    demo = shipped_recipes()[0]
    for targets in ('["layers.0.mlp.up_proj"]', "all-linear", '["lm_head"]'):
        check_models(load_recipe(demo, [f"tuned.target_modules={targets}"]))
    with pytest.raises(RecipeError, match=r'--set .*target_modules\[0\] — .*got "qkv_proj"'):
        check_models(load_recipe(demo, ['tuned.target_modules=["qkv_proj"]']))
    check_models(
        load_recipe(demo, ['tuned.modules_to_save=["embed_tokens", "model.norm", "layers.0.input_layernorm"]'])
    )
    with pytest.raises(RecipeError, match=r"modules_to_save\[0\] — no layer with weights"):
        check_models(load_recipe(demo, ['tuned.modules_to_save=["wte"]']))


def test_other_families_need_llama_cpps_script(tmp_path: Path) -> None:
    text = EXPORT + 'converter = "upstream"\nllama_cpp = "./text"\n'
    path = recipe(tmp_path, text, architectures=["GPT2LMHeadModel"])
    with pytest.raises(RecipeError, match=r"no convert_hf_to_gguf\.py in .*/text; get it with `git clone"):
        check_models(load_recipe(path))
    (tmp_path / "text" / "convert_hf_to_gguf.py").write_text("")
    check_models(load_recipe(path))


TUNED_AND_EXPORTED = (
    'schema = 1\nname = "x"\n\n[[stage]]\nname = "t"\nkind = "finetune"\nmodel = "./model"\ndata = "./text"\n\n'
    '[[stage]]\nname = "m"\nkind = "merge"\nmodel = "./model"\nadapter = "t"\n\n'
    '[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "m"\nfile_types = ["F16"]\n'
)


def test_a_family_that_the_export_at_the_end_cannot_write_is_refused_before_the_training(tmp_path: Path) -> None:
    path = recipe(tmp_path, TUNED_AND_EXPORTED, architectures=["MixtralForCausalLM"])
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "model" / "tokenizer.json").touch()
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(path))
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("gguf.model", 19)
    assert 'got "MixtralForCausalLM"' in problem.message
    (tmp_path / "model" / "config.json").write_text(json.dumps(GOOD))
    check_models(load_recipe(path))
