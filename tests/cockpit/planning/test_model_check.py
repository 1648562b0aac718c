"""Model folders that a recipe names are checked before a run is created."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.launch import launch, launch_text
from cockpit.planning.model_check import check_models
from recipes.load import load_recipe
from recipes.problems import OperatorError, RecipeError
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
MERGE = 'schema = 1\nname = "x"\n\n[[stage]]\nname = "merged"\nkind = "merge"\nmodel = "./model"\nadapter = "./text"\n'


def recipe(folder: Path, text: str, **fields: Any) -> Path:
    (folder / "model").mkdir()
    (folder / "text").mkdir()
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


def test_other_families_need_a_checkout(tmp_path: Path) -> None:
    text = EXPORT + 'converter = "upstream"\nllama_cpp = "./text"\n'
    check_models(load_recipe(recipe(tmp_path, text, architectures=["GPT2LMHeadModel"])))
