"""A configuration of another program becomes the fields that say the same, and every key has an outcome."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cockpit.importing import arguments, axolotl, llama_factory, llama_factory_v1
from cockpit.importing.config import read_config
from cockpit.importing.draft import DATA, MERGED, PAIRS, TAGS, TUNED, Rule
from cockpit.importing.programs import Imported, import_config, program_of
from cockpit.importing.recipe_text import recipe_text
from recipes.fields import fields_of
from recipes.load import load_recipe_text
from recipes.problems import OperatorError, RecipeError
from recipes.toml_read import parse
from tests.cockpit.importing.configurations import AXOLOTL, LLAMA_FACTORY, SCRIPT, imported, outcome, registry


def fields_of_stage(stage: str) -> set[str]:
    """The fields that a stage of an import can have: the one that trains has one of several types."""
    tags = (TAGS[stage], PAIRS) if stage == TUNED else (TAGS[stage],)
    return {spec.path for tag in tags for spec in fields_of(tag)}


def lacks(found: Imported, folder: Path) -> set[str]:
    """The keys of the problems that the made recipe has."""
    try:
        load_recipe_text(recipe_text(found), folder / "recipe.toml")
    except RecipeError as error:
        return {problem.key for problem in error.problems}
    return set()


def test_llama_factory_keys_become_fields_with_the_same_values(tmp_path: Path) -> None:
    registry(tmp_path, pets={"file_name": "pets.json"})
    found = imported(tmp_path, LLAMA_FACTORY)
    tuned = found.stages["tuned"]
    assert found.program == "LLaMA-Factory"
    assert tuned["model"] == "acme/tiny-llama"
    assert (tuned["r"], tuned["target_modules"], tuned["max_length"]) == (12, ["q_proj", "v_proj"], 640)
    assert (tuned["learning_rate"], tuned["warmup_steps"], tuned["save_steps"]) == (1e-4, 0.1, 250)
    assert (tuned["lr_scheduler_type"], tuned["bf16"], tuned["chat_template"]) == ("cosine", True, "llama-3")
    assert tuned["data"] == "data"
    assert found.stages["data"] == {
        "val_fraction": 0.1, "test_fraction": 0.0, "format": "alpaca", "data": str(tmp_path / "data" / "pets.json")
    }  # fmt: skip
    assert lacks(found, tmp_path) == set()


def test_what_llama_factory_assumes_is_written_where_cockpit_assumes_something_else(tmp_path: Path) -> None:
    found = imported(tmp_path, "model_name_or_path: acme/tiny\nfinetuning_type: lora\nlora_rank: 4\n")
    tuned = found.stages["tuned"]
    assert (tuned["lora_alpha"], tuned["target_modules"], tuned["max_length"]) == (8.0, ["all-linear"], 2048)
    assert (tuned["learning_rate"], tuned["num_train_epochs"], tuned["lr_scheduler_type"]) == (5e-5, 3.0, "linear")
    assert tuned["gradient_checkpointing"] is True
    assert {one.key for one in found.outcomes if one.status == "default"} >= {
        "lora_alpha",
        "max_length",
        "learning_rate",
    }


def test_axolotl_keys_become_fields_with_the_same_values(tmp_path: Path) -> None:
    found = imported(tmp_path, AXOLOTL)
    tuned = found.stages["tuned"]
    assert (tuned["r"], tuned["lora_alpha"], tuned["lora_dropout"]) == (8, 16.0, 0.05)
    assert (tuned["target_modules"], tuned["optim"], tuned["bf16"]) == (["all-linear"], "adamw_8bit", True)
    assert (tuned["per_device_train_batch_size"], tuned["gradient_accumulation_steps"]) == (2, 4)
    assert tuned["packing"] is True
    assert found.stages["data"]["format"] == "sharegpt"
    assert found.stages["data"]["data"] == "acme/talks"
    assert tuned["save_strategy"] == "epoch"
    assert [one.key for one in found.outcomes if one.status == "different"] == ["load_in_8bit"]
    assert outcome(found, "load_in_4bit").status == "unneeded"
    assert outcome(found, "wandb_project").status == "unset"


def test_the_arguments_of_a_script_are_read_and_the_script_is_not_executed(tmp_path: Path) -> None:
    found = imported(tmp_path, SCRIPT, "train.py")
    tuned = found.stages["tuned"]
    assert found.program == "Unsloth"
    assert (tuned["model"], tuned["max_length"], tuned["r"], tuned["lora_alpha"]) == ("acme/tiny-llama", 4096, 32, 64.0)
    assert (tuned["max_steps"], tuned["optim"], tuned["seed"]) == (60, "adamw_8bit", 3407)
    assert outcome(found, "bf16").status == "different"
    assert "good()" in outcome(found, "bf16").says
    assert outcome(found, "train_dataset").status == "different"


@pytest.mark.parametrize(
    ("text", "truncation"),
    [
        ("model_name_or_path: a/b\nfinetuning_type: lora\n", "answer"),
        ("base_model: a/b\nadapter: lora\nexcess_length_strategy: truncate\n", "answer"),
        ("base_model: a/b\nadapter: lora\nexcess_length_strategy: raise\n", "error"),
        ("model_name_or_path: a/b\nuse_peft: true\nlora_r: 8\n", "answer"),
        ("model_name_or_path: a/b\nuse_peft: true\ntruncation_mode: keep_end\n", "left"),
    ],
)
def test_a_row_that_is_too_long_is_treated_as_the_program_treats_it(text: str, truncation: str, tmp_path: Path) -> None:
    assert imported(tmp_path, text).stages["tuned"]["truncation"] == truncation


def test_trls_list_of_data_sets_takes_the_first_and_names_its_keys(tmp_path: Path) -> None:
    text = "model_name_or_path: a/b\nlora_r: 8\ntest_split_size: 0.2\ndatasets:\n- path: c/d\n  name: en\n"
    found = imported(tmp_path, text)
    assert found.stages["data"] == {"val_fraction": 0.2, "test_fraction": 0.0, "data": "c/d"}
    assert outcome(found, "datasets[0].name").line == 6


@pytest.mark.parametrize("trainer", ["KTOTrainer", "RLOOTrainer", "trl.experimental.gkd.GKDTrainer", "MyTrainer"])
def test_a_script_with_another_trainer_makes_no_recipe(trainer: str, tmp_path: Path) -> None:
    found = imported(tmp_path, SCRIPT.replace("SFTTrainer(", f"{trainer}("), "train.py")
    assert trainer.rpartition(".")[2] in {one.key for one in found.missing}


def test_a_notebook_is_read_as_the_script_in_its_code_cells(tmp_path: Path) -> None:
    first, second = SCRIPT[: SCRIPT.index("trainer =")], SCRIPT[SCRIPT.index("trainer =") :]
    cells = [
        {"cell_type": "code", "source": ["%%capture\n", "!pip install unsloth\n"]},
        {"cell_type": "markdown", "source": "SFTConfig(max_steps=9)"},
        {"cell_type": "code", "source": first.splitlines(keepends=True)},
        {"cell_type": "code", "source": "%%bash\npython -c 'SFTConfig(max_steps=7)'"},
        {"cell_type": "code", "source": second},
    ]
    found = imported(tmp_path, json.dumps({"cells": cells}), "train.ipynb")
    assert found.stages == imported(tmp_path, SCRIPT, "train.py").stages


def test_arguments_of_trl_in_yaml_and_in_a_dictionary_mean_the_same(tmp_path: Path) -> None:
    pairs = {"model_name_or_path": "acme/tiny", "dataset_name": "acme/talks", "use_peft": True, "lora_r": 8,
             "learning_rate": 1e-4, "max_length": 256, "assistant_only_loss": True}  # fmt: skip
    written = imported(tmp_path, "".join(f"{key}: {str(value).lower()}\n" for key, value in pairs.items()))
    script = imported(tmp_path, f"args = {pairs!r}\n", "args.py")
    assert written.stages == script.stages
    tuned = written.stages["tuned"]
    assert tuned | {"model": "acme/tiny", "data": "acme/talks", "r": 8} == tuned


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model_name_or_path: a/b\nstage: kto\nfinetuning_type: lora\n", "stage"),
        ("model_name_or_path: a/b\nstage: sft\nfinetuning_type: freeze\n", "finetuning_type"),
        ("model_name_or_path: a/b\nstage: dpo\nfinetuning_type: lora\npref_loss: orpo\n", "pref_loss"),
        ("base_model: a/b\nadapter: oft\n", "adapter"),
        ("base_model: a/b\nadapter: lora\nrl: orpo\n", "rl"),
        (
            "model_name_or_path: a/b\ndataset_name: c/d\nuse_peft: true\nbeta: 0.1\nnum_generations: 8\n",
            "num_generations",
        ),
    ],
)
def test_a_method_that_recipes_do_not_have_makes_no_recipe(text: str, key: str, tmp_path: Path) -> None:
    found = imported(tmp_path, text)
    assert key in {one.key for one in found.missing}
    assert recipe_text(found) == ""


@pytest.mark.parametrize("program", [llama_factory, llama_factory_v1, axolotl, arguments])
def test_every_key_of_a_table_leads_to_a_field_that_exists(program: ModuleType) -> None:
    tables: list[dict[str, Rule]] = [table for table in vars(program).values() if isinstance(table, dict)]
    rules = [rule for table in tables for rule in table.values() if isinstance(rule, Rule) and rule.field]
    assert rules
    for rule in rules:
        stage, _, name = rule.field.partition(".")
        assert name in fields_of_stage(stage), rule.field


STRANGE: list[Any] = [
    "x", "1e-3", 12, 0, True, False, None, ["a", "b"], [], {}, {"a": 1}, [1, 2], [None], [{"path": 1}], -1, 0.5, 1.5,
    "epoch", "steps", "no", "auto", "lora", "full", "sft", "pt", "all", "cosine", "constant", "cosine_with_min_lr",
    {"min_lr_rate": 0.1}, {"min_lr": 1e-5}, {"min_lr_rate": "x"}, float("inf"), float("nan"), 10**40, "org/name",
    "", "pets",
    [{"path": "a/b", "type": "alpaca"}], {"name": "lora", "export_dir": "x"}, {"path": "a", "type": {"field_input": 3}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "program"),
    [(llama_factory, "llama-factory"), (llama_factory_v1, "llama-factory"), (axolotl, "axolotl"), (arguments, "trl")],
)
def test_no_key_is_dropped_whatever_its_value(module: ModuleType, program: str, tmp_path: Path) -> None:
    chance = random.Random(7)
    signs = {"model_class": "llm", "kernel_config": {}} if module is llama_factory_v1 else {}
    for _ in range(40):
        keys = [*chance.sample(list(module.KNOWN), 15), "mine_1", "mine_2"]
        values = {key: chance.choice(STRANGE) for key in keys} | {"mine_1": 1, "mine_2": "x"} | signs
        found = imported(tmp_path, yaml.safe_dump(values, sort_keys=False), program=program)
        there = [one.key for one in found.outcomes if one.line and one.key in values]
        assert sorted(there) == sorted(values), "exactly one outcome for each key"
        assert {one.key for one in found.outcomes if one.status == "unknown"} >= {"mine_1", "mine_2"}
        if text := recipe_text(found):
            parse(text, tmp_path / "recipe.toml")


def test_a_value_outside_a_fields_bounds_is_reported_with_what_is_allowed(tmp_path: Path) -> None:
    found = imported(tmp_path, LLAMA_FACTORY.replace("learning_rate: 1e-4", "learning_rate: 5\nmax_grad_norm: 0"))
    assert "allowed a number > 0 and ≤ 1" in outcome(found, "learning_rate").says
    assert "max_grad_norm" not in found.stages["tuned"]
    assert outcome(found, "max_grad_norm").status == "different"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    one = outcome(imported(tmp_path, LLAMA_FACTORY + "lora_rnak: 9\n"), "lora_rnak")
    assert (one.status, one.line) == ("unknown", LLAMA_FACTORY.count("\n") + 1)
    assert "did you mean lora_rank?" in one.says


def test_the_recipe_lists_what_is_not_in_it(tmp_path: Path) -> None:
    text = recipe_text(imported(tmp_path, LLAMA_FACTORY + "mine: 1\nshift_attn: true\n"))
    assert "shift_attn = true —" in text
    assert "mine = 1 —" in text
    assert text.index("Unknown keys") < text.index("schema = 1")


def test_a_merge_of_llama_factory_becomes_a_merge_stage(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        "model_name_or_path: a/b\nadapter_name_or_path: c/d\ntemplate: llama3\nexport_dir: out\nexport_size: 5\n",
    )
    assert found.stages == {"merged": {"model": "a/b", "adapter": "c/d", "output_dir": "out"}}
    assert 'kind = "merge"' in recipe_text(found)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (LLAMA_FACTORY, "llama-factory"),
        (AXOLOTL, "axolotl"),
        ("datasets:\n  - path: a/b\n    type: alpaca\n", "axolotl"),
        ("model_name_or_path: a/b\nlora_r: 8\ndataset_name: c/d\n", "trl"),
        ('{"pets": {"file_name": "pets.json"}}', "dataset-info"),
    ],
)
def test_the_program_is_found_by_the_files_keys(text: str, program: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert program_of(read_config(path)) == program


def test_a_file_of_no_known_program_is_refused_with_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "fsdp.yaml"
    path.write_text("optimizer: adam\nlayers: 2\n")
    with pytest.raises(OperatorError, match="optimizer, layers"):
        import_config(read_config(path), None)


@pytest.mark.parametrize(
    "text",
    [
        "model_name_or_path: a/b\ntemplate: llama3\ninfer_backend: vllm\n",
        "model_name_or_path: a/b\ntemplate: llama3\ndataset: pets\ndo_predict: true\n",
    ],
)
def test_a_file_about_generating_text_makes_no_training(text: str, tmp_path: Path) -> None:
    assert outcome(imported(tmp_path, text), "do_train").status == "missing"


SECOND_KIND = """\
model: acme/tiny-llama
model_class: llm
peft_config:
  name: lora
  r: 12
  lora_alpha: 24
  target_modules: all
  mine: 1
quant_config:
  name: bnb
  quantization_bit: 4
train_dataset: sets.yaml
micro_batch_size: 2
global_batch_size: 8
cutoff_len: 512
learning_rate: 1.0e-4
max_steps: 10
"""


def test_the_second_kind_of_llama_factorys_files_is_read_with_its_tables(tmp_path: Path) -> None:
    (tmp_path / "pets.json").write_text("[]")
    (tmp_path / "sets.yaml").write_text("pets:\n  path: pets.json\n  source: local\n  converter: alpaca\n  size: 5\n")
    found = imported(tmp_path, SECOND_KIND)
    tuned = found.stages["tuned"]
    assert (tuned["r"], tuned["target_modules"], tuned["gradient_accumulation_steps"]) == (12, ["all-linear"], 4)
    assert (tuned["format"], tuned["lr_scheduler_type"], tuned["bf16"]) == ("alpaca", "constant", True)
    assert Path(tuned["data"]) == tmp_path / "pets.json"
    assert outcome(found, "peft_config.mine").line == 8
    assert outcome(found, "peft_config.mine").status == "unknown"
    assert (tuned["load_in_4bit"], tuned["bnb_4bit_use_double_quant"]) == (True, True)
    assert outcome(found, "quant_config.quantization_bit").fields == ("tuned.load_in_4bit",)
    assert outcome(found, "train_dataset.pets.size").status == "different"


def test_rows_of_preferences_in_the_second_kind_need_what_says_how_they_are_compared(tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text("pets:\n  path: a/b\n  converter: pair\n")
    assert outcome(imported(tmp_path, SECOND_KIND), "train_dataset").status == "missing"
    found = imported(tmp_path, SECOND_KIND + "pref_loss: ipo\npref_beta: 0.3\n")
    tuned = found.stages["tuned"]
    assert (found.method, tuned["loss_type"], tuned["beta"], tuned["format"]) == ("dpo", ["ipo"], 0.3, "preference")


def test_a_merge_of_the_second_kind_becomes_a_merge_stage(tmp_path: Path) -> None:
    text = "model: a/b\npeft_config:\n  name: lora\n  adapter_name_or_path: c/d\n  export_dir: out\n  export_size: 5\n"
    assert imported(tmp_path, text).stages == {"merged": {"model": "a/b", "adapter": "c/d", "output_dir": "out"}}


def test_every_field_that_an_import_names_exists() -> None:
    """Names that no table has, because their values need a look at other keys."""
    folder = Path(llama_factory.__file__).parent
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    named = re.findall(r"\{(TUNED|DATA|MERGED)\}\.([a-z_0-9]+)", source)
    assert len(named) > 30
    for stage, name in set(named):
        assert name in fields_of_stage({"TUNED": TUNED, "DATA": DATA, "MERGED": MERGED}[stage]), f"{stage}.{name}"
