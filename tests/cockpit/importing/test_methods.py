"""Methods of other programs become the stage that does the same: all weights, 4 bits, variants of LoRA, pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.importing.programs import Imported
from cockpit.importing.recipe_text import recipe_text
from engines.data.door import DataSource, ReadCounts, read_rows
from engines.data.readers.row import PreferenceRow
from recipes.load import load_recipe_text
from tests.cockpit.importing.configurations import imported, outcome, registry

LF = "model_name_or_path: a/b\ndo_train: true\nfinetuning_type: lora\n"
AX = "base_model: a/b\nadapter: lora\n"
TRL = "model_name_or_path: a/b\nuse_peft: true\nlora_r: 8\n"
DPO = "stage: dpo\n"
SCRIPT = """\
from trl import {name}Config, {name}Trainer
model = AutoModelForCausalLM.from_pretrained("a/b", quantization_config=BitsAndBytesConfig({quantized}), ref_model=None)
{name}Trainer(
    model=model, peft_config=LoraConfig(r=8, use_dora=True), train_dataset=load(), args={name}Config({arguments})
)
"""


def tuned(found: Imported) -> dict[str, Any]:
    return found.stages["tuned"]


def loads(found: Imported, folder: Path) -> str:
    """The kind and output of the stage that trains, in the recipe as Cockpit reads it."""
    found.stages["tuned"].setdefault("data", "c/d")
    recipe = load_recipe_text(recipe_text(found), folder / "recipe.toml").recipe
    (stage,) = [one for one in recipe.stage if one.name == "tuned"]
    return f"{stage.kind} {getattr(stage, 'output', '')}"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (LF + "quantization_bit: 4\n", {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}),
        (
            LF + "quantization_bit: 4\nquantization_type: fp4\ndouble_quantization: false\n",
            {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": None},
        ),
        (LF + "use_dora: true\n", {"use_dora": True}),
        (LF + "pissa_init: true\n", {"init_lora_weights": "pissa_niter_16"}),
        (LF + "pissa_init: true\npissa_iter: -1\n", {"init_lora_weights": "pissa"}),
        (LF + "pissa_iter: 4\n", {"init_lora_weights": None}),
        (LF + "additional_target: embed_tokens,lm_head\n", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (LF + "optim: paged_adamw_8bit\n", {"optim": "paged_adamw_8bit"}),
        (AX + "load_in_4bit: false\n", {"load_in_4bit": None}),
        (
            "base_model: a/b\nadapter: qlora\n",
            {"load_in_4bit": True, "bnb_4bit_quant_type": None, "bnb_4bit_use_double_quant": True},
        ),
        (
            AX + "load_in_4bit: true\nbnb_config_kwargs:\n  bnb_4bit_use_double_quant: true\n"
            "  llm_int8_skip_modules: [mamba]\n  bnb_4bit_compute_dtype: torch.bfloat16\n",
            {"load_in_4bit": True, "llm_int8_skip_modules": ["mamba"], "bnb_4bit_compute_dtype": "bfloat16"},
        ),
        (AX + "peft_use_dora: true\nlora_modules_to_save: [lm_head]\n",
         {"use_dora": True, "modules_to_save": ["lm_head"]}),
        (AX + "peft_init_lora_weights: pissa_niter_4\n", {"init_lora_weights": "pissa_niter_4"}),
        (AX + "float32: true\n", {"bf16": False}),
        (AX + "lora_target_modules: 'model.layers.[0-3].*.(q|v)_proj'\n",
         {"target_modules": ["model.layers.[0-3].*.(q|v)_proj"]}),
        (AX + "peft_layers_to_transform: [0, 1]\nlora_rank_pattern: {q_proj: 4}\n",
         {"layers_to_transform": [0, 1], "rank_pattern": {"q_proj": 4}}),
        (AX + "peft_init_lora_weights: loftq\n", {"init_lora_weights": "loftq", "load_in_4bit": True}),
        (AX + "neftune_noise_alpha: 5\nlabel_smoothing_factor: 0.1\noptimizer: lion_8bit\n",
         {"neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1, "optim": "lion_8bit"}),
        (AX + "eval_steps: 5\nmetric_for_best_model: perplexity\ngreater_is_better: true\n",
         {"metric_for_best_model": "eval_perplexity", "greater_is_better": True}),
        (LF + "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2.0, lr_end: 1.0e-6}\n",
         {"lr_scheduler_type": "polynomial", "power": 2.0, "lr_end": 1e-6}),
        (LF + "lr_scheduler_type: warmup_stable_decay\n"
         "lr_scheduler_kwargs: {num_decay_steps: 50, decay_type: linear}\n",
         {"num_decay_steps": 50.0, "decay_type": "linear"}),
        (TRL + "alpha_pattern: {q_proj: 8}\nlr_scheduler_type: cosine_with_restarts\n"
         "lr_scheduler_kwargs: {num_cycles: 3}\n", {"alpha_pattern": {"q_proj": 8.0}, "num_cycles": 3}),
        (AX + "eval_steps: 5\nsave_steps: 10\nearly_stopping_patience: 3\n", {"early_stopping_patience": 3}),
        (AX + "evals_per_epoch: 1\nload_best_model_at_end: true\n",
         {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}),
        (TRL + "load_in_4bit: true\nuse_bnb_nested_quant: true\nbnb_4bit_quant_type: nf4\n",
         {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"}),
        (TRL + "use_dora: true\nlora_modules_to_save: [lm_head]\npadding_free: true\n",
         {"use_dora": True, "modules_to_save": ["lm_head"], "padding_free": True}),
    ],
)  # fmt: skip
def test_the_keys_of_a_method_become_the_fields_that_have_the_same_effect(
    text: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    found = imported(tmp_path, text)
    assert {name: tuned(found).get(name) or None for name in fields if name != "bf16"} | {
        name: tuned(found)[name] for name in fields if name == "bf16"
    } == fields
    assert not [one for one in found.outcomes if one.status in ("different", "unknown")]
    assert loads(found, tmp_path) == "finetune adapter"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (LF.replace("lora\n", "full\n") + "lora_rank: 4\nlora_target: all\n", "lora_rank"),
        ("base_model: a/b\nlora_r: 8\n", "lora_r"),
        ("model: a/b\npeft_config: {name: full, r: 8}\nmodel_class: llm\n", "peft_config.r"),
        ("model_name_or_path: a/b\nuse_peft: false\nlora_r: 8\ndataset_name: c/d\n", "lora_r"),
        ("model_name: a/b\nfull_finetuning: true\nmax_seq_length: 64\nr: 16\n", "r"),
    ],
)
def test_a_training_of_all_weights_has_no_fields_of_an_adapter(text: str, key: str, tmp_path: Path) -> None:
    found = imported(tmp_path, text)
    assert loads(found, tmp_path) == "finetune model"
    assert outcome(found, key).status == "unneeded"
    assert "all weights are trained" in outcome(found, key).says


@pytest.mark.parametrize(
    "text",
    [
        LF.replace("lora\n", "full\n") + DPO,
        "model: a/b\npeft_config: {name: full}\npref_loss: sigmoid\nmodel_class: llm\n",
        "base_model: a/b\nrl: dpo\n",
        "model_name_or_path: a/b\ndataset_name: c/d\nbeta: 0.1\n",
    ],
)
def test_a_training_of_all_weights_on_pairs_is_a_dpo_stage_with_a_model(text: str, tmp_path: Path) -> None:
    found = imported(tmp_path, text)
    assert not found.missing
    assert loads(found, tmp_path) == "dpo model"


@pytest.mark.parametrize(
    ("text", "optim"),
    [
        (LF.replace("lora\n", "full\n") + "use_muon: true\n", "muon"),
        (LF.replace("lora\n", "full\n") + "use_muon: true\noptim: adamw_torch\n", "muon"),
        ("base_model: a/b\noptimizer: muon\n", "muon"),
        (LF + "use_muon: true\n", None),
    ],
)
def test_muon_is_an_optimizer_of_all_weights(text: str, optim: str | None, tmp_path: Path) -> None:
    found = imported(tmp_path, text)
    assert tuned(found).get("optim") == optim
    if optim is None:
        assert outcome(found, "use_muon").status == "different"
    assert loads(found, tmp_path).startswith("finetune")


def test_all_weights_of_a_quantized_model_are_a_difference(tmp_path: Path) -> None:
    found = imported(tmp_path, "base_model: a/b\nload_in_4bit: true\n")
    assert outcome(found, "load_in_4bit").status == "different"
    assert loads(found, tmp_path) == "finetune model"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        (LF + "quantization_bit: 8\n", "quantization_bit", "8 bits are not supported"),
        (LF + "quantization_bit: 4\nquantization_method: hqq\n", "quantization_method", "bitsandbytes"),
        (AX + "load_in_8bit: true\n", "load_in_8bit", "8 bits are not supported"),
        (AX + "peft_init_lora_weights: eva\n", "peft_init_lora_weights", "allowed true, gaussian"),
        (
            AX + "eval_steps: 5\nmetric_for_best_model: accuracy\ngreater_is_better: true\n",
            "greater_is_better",
            "no evaluation measures",
        ),
        (AX + "peft_use_dora: true\npeft_init_lora_weights: olora\n", "peft_init_lora_weights", "use_dora"),
        (TRL + "loftq_config: {a: 1}\n", "loftq_config", "no such part"),
        (LF + DPO + "ref_model: c/d\n", "ref_model", "before the first step"),
        (LF + DPO + "dpo_label_smoothing: 0.1\n", "dpo_label_smoothing", "robust"),
    ],
)
def test_what_a_recipe_lacks_stays_listed(text: str, key: str, says: str, tmp_path: Path) -> None:
    found = imported(tmp_path, text)
    assert outcome(found, key).status == "different"
    assert says in outcome(found, key).says
    loads(found, tmp_path)


def test_a_stable_rate_falls_to_the_lowest_that_transformers_has_where_the_file_names_none(tmp_path: Path) -> None:
    found = imported(tmp_path, LF + "lr_scheduler_type: warmup_stable_decay\n")
    assert tuned(found)["min_lr_rate"] == 0.0
    found = imported(
        tmp_path, LF + "lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {min_lr_ratio: 0.2}\n"
    )
    assert tuned(found)["min_lr_rate"] == 0.2


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (LF + DPO + "pref_beta: 0.2\npref_loss: hinge\nlora_dropout: 0.1\n", {"beta": 0.2, "loss_type": ["hinge"]}),
        (LF + DPO + "pref_ftx: 0.5\n", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        (LF + DPO + "ld_alpha: 0.5\nuse_dora: true\n", {"ld_alpha": 0.5, "use_dora": True}),
        (AX + "rl: dpo\nrl_beta: 0.2\nsample_packing: true\n", {"beta": 0.2, "packing": None}),
        (AX + "rl: dpo\ntrl: {beta: 0.3}\nrpo_alpha: 1\n", {"beta": 0.3, "loss_type": ["sigmoid", "sft"]}),
        (AX + "rl: ipo\ndpo_use_weighting: true\n", {"loss_type": ["ipo"], "use_weighting": True}),
        (AX + "rl: dpo\ndpo_loss_type: [robust]\ndpo_label_smoothing: 0.1\n",
         {"loss_type": ["robust"], "label_smoothing": 0.1}),
        (TRL + "beta: 0.2\nloss_type: [sigmoid, sft]\nloss_weights: [1, 0.5]\n",
         {"beta": 0.2, "loss_weights": [1.0, 0.5], "learning_rate": 1e-6}),
        (TRL + "beta: 0.2\nf_divergence_type: forward_kl\nprecompute_ref_log_probs: true\n",
         {"f_divergence_type": "forward_kl", "precompute_ref_log_probs": True}),
    ],
)  # fmt: skip
def test_training_on_pairs_becomes_a_dpo_stage(text: str, fields: dict[str, Any], tmp_path: Path) -> None:
    found = imported(tmp_path, text)
    assert {name: tuned(found).get(name) for name in fields} == fields
    assert not [one for one in found.outcomes if one.status in ("different", "unknown")]
    assert loads(found, tmp_path) == "dpo adapter"


def test_4_bit_layers_are_not_computed_in_float16(tmp_path: Path) -> None:
    found = imported(tmp_path, TRL + "load_in_4bit: true\nbnb_4bit_compute_dtype: float16\n")
    one = outcome(found, "bnb_4bit_compute_dtype")
    assert (one.status, tuned(found).get("bnb_4bit_compute_dtype")) == ("different", None)
    assert "float16" in one.says


def test_the_reference_of_an_adapter_that_is_trained_further_is_said(tmp_path: Path) -> None:
    found = imported(tmp_path, LF + DPO + "adapter_name_or_path: ./mine\n")
    assert tuned(found)["start_from"] == "./mine"
    assert (one := outcome(found, "adapter_name_or_path")).status == "different"
    assert "reference" in one.says


def test_a_script_of_trls_dpo_trainer_is_read_with_its_4_bits(tmp_path: Path) -> None:
    quantized = "load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16"
    text = SCRIPT.format(name="DPO", quantized=quantized, arguments="beta=0.3, loss_type='ipo', max_length=64")
    found = imported(tmp_path, text, "train.py")
    assert tuned(found) | {
        "beta": 0.3, "loss_type": ["ipo"], "max_length": 64, "use_dora": True, "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "bfloat16", "learning_rate": 1e-6,
    } == tuned(found)  # fmt: skip
    assert outcome(found, "ref_model").status == "unset"
    assert loads(found, tmp_path) == "dpo adapter"


def test_what_unsloth_does_without_being_asked_is_written(tmp_path: Path) -> None:
    text = 'model, _ = FastLanguageModel.from_pretrained("a/b")\nFastLanguageModel.get_peft_model(model, r=8)\n'
    assert (tuned(imported(tmp_path, text, "a.py"))["load_in_4bit"]) is True
    found = imported(tmp_path, text.replace('"a/b"', '"a/b", full_finetuning=True'), "b.py")
    assert loads(found, tmp_path) == "finetune model"


def test_a_configuration_for_unsloth_trains_with_it_in_its_own_four_bits(tmp_path: Path) -> None:
    text = 'model, _ = FastLanguageModel.from_pretrained("a/b")\nFastLanguageModel.get_peft_model(model, r=8)\n'
    found = imported(tmp_path, text, "a.py")
    assert tuned(found)["backend"] == "unsloth"
    assert "name the interpreter of Unsloth's environment in python" in outcome(found, "backend").says
    assert loads(found, tmp_path) == "finetune adapter"
    other = imported(
        tmp_path, f"{text}BitsAndBytesConfig(bnb_4bit_quant_type='fp4', bnb_4bit_use_double_quant=False)", "b.py"
    )
    assert tuned(other)["bnb_4bit_use_double_quant"] is True
    assert "bnb_4bit_quant_type" not in tuned(other)
    assert outcome(other, "bnb_4bit_quant_type").status == "different"
    assert loads(other, tmp_path) == "finetune adapter"
    pairs = imported(tmp_path, f"{text}DPOConfig(beta=0.2)\n", "c.py")
    assert "backend" not in tuned(pairs)


@pytest.mark.parametrize(("stage", "backend"), [("", "unsloth"), (DPO, None)])
def test_use_unsloth_of_llama_factory_is_the_backend_except_for_pairs(
    tmp_path: Path, stage: str, backend: str | None
) -> None:
    found = imported(tmp_path, f"{LF}{stage}use_unsloth: true\nquantization_bit: 4\ndouble_quantization: false\n")
    assert tuned(found).get("backend") == backend
    assert loads(found, tmp_path) == ("dpo adapter" if stage else "finetune adapter")


ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"columns": {"prompt": "q", "query": "more", "chosen": "yes", "rejected": "no"}},
        {"q": "Capital of Peru?", "more": "One word.", "yes": "Lima", "no": "Cusco"},
    ),
    (
        {"columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}},
        {"instruction": "Capital of Peru?", "input": "left out", "chosen": "Lima", "rejected": "Cusco"},
    ),
    (
        {"formatting": "sharegpt", "columns": {"messages": "talk", "chosen": "chosen", "rejected": "rejected"}},
        {
            "talk": [{"from": "human", "value": "Capital of Peru?"}],
            "chosen": {"from": "gpt", "value": "Lima"},
            "rejected": {"from": "gpt", "value": "Cusco"},
        },
    ),
]


@pytest.mark.parametrize(("entry", "row"), ROWS)
def test_a_ranked_data_set_is_read_as_its_own_rows_say(
    entry: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    registry(tmp_path, pets={"file_name": "pets.json", "ranking": True, **entry})
    (tmp_path / "data" / "pets.json").write_text(json.dumps([row]))
    found = imported(tmp_path, LF + DPO + "dataset: pets\n")
    assert outcome(found, "dataset").status == "imported"
    fields = {key: tuned(found)[key] for key in ("format", "columns", "ignore_keys") if key in tuned(found)}
    (located,) = read_rows(DataSource(Path(tuned(found)["data"]), **fields), "train", ReadCounts())
    assert isinstance(located.row, PreferenceRow)
    sides = (located.row.chosen, located.row.rejected)
    assert [[(turn.role, turn.content) for turn in side] for side in sides] == [
        [("assistant", "Lima")], [("assistant", "Cusco")]
    ]  # fmt: skip
    (prompt,) = located.row.prompt
    assert prompt.role == "user"
    assert prompt.content.startswith("Capital of Peru?")
    assert ("One word." in prompt.content) == ("more" in row)
    assert "left out" not in prompt.content


@pytest.mark.parametrize(
    ("entry", "columns"),
    [
        ("type: chat_template.default", {"prompt": "messages"}),
        ("type: chatml.intel", {"prompt": "question"}),
        ("type: chat_template.default\n    field_messages: talk\n    field_chosen: yes_",
         {"prompt": "talk", "chosen": "yes_"}),
        ("type:\n      field_prompt: q\n      field_rejected: no_", {"prompt": "q", "rejected": "no_"}),
        ("split: train", {}),
    ],
)  # fmt: skip
def test_axolotls_data_sets_of_pairs_are_read_by_their_columns(
    entry: str, columns: dict[str, str], tmp_path: Path
) -> None:
    found = imported(tmp_path, f"{AX}rl: dpo\ndatasets:\n  - path: c/d\n    {entry}\n")
    assert (tuned(found)["format"], tuned(found).get("columns", {})) == ("preference", columns)
    assert loads(found, tmp_path) == "dpo adapter"


def test_data_of_the_other_kind_makes_no_recipe(tmp_path: Path) -> None:
    registry(tmp_path, pets={"file_name": "pets.json"})
    assert outcome(imported(tmp_path, LF + DPO + "dataset: pets\n"), "dataset").status == "missing"
