"""The recipes of named sizes: their models have the sizes that their heads say, and the times are the plan's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from recipes import quantities
from recipes.load import load_recipe
from recipes.shipped import shipped_recipe
from recipes.stages.decoder.operations import PLANNED_DEVICE, PLANNED_SHARE, planned_seconds
from recipes.stages.pretrain import PretrainStage
from recipes.stages.tokenizer import TokenizerStage

SIZES = {
    "auton-slm-tiny": (9_997_568, "10M"),
    "auton-slm-small": (47_849_984, "50M"),
    "auton-slm-medium": (151_800_576, "150M"),
    "auton-slm-large": (430_490_624, "500M"),
    "llama-30m": (30_020_096, ""),
    "llama-200m": (200_039_424, ""),
    "llama-1.5b": (1_500_088_320, ""),
}
"""True numbers of parameters, and the labels of the plan that they come from."""
SLM = [name for name in SIZES if name.startswith("auton")]


def loaded(name: str) -> Any:
    return load_recipe(shipped_recipe(name) or Path(), paths_here=False).recipe


def base_of(name: str) -> PretrainStage:
    return next(stage for stage in loaded(name).stage if isinstance(stage, PretrainStage))


def sizes_of(name: str) -> Any:
    vocabulary = next(stage.vocab_size for stage in loaded(name).stage if isinstance(stage, TokenizerStage))
    return base_of(name).sizes(vocabulary)


@pytest.mark.parametrize("name", SIZES)
def test_the_head_of_a_recipe_says_its_command_its_true_size_and_the_time_of_the_plan(name: str) -> None:
    sizes, stage, (parameters, label) = sizes_of(name), base_of(name), SIZES[name]
    assert sizes.parameters == parameters
    head = "".join(re.findall(r"^#.*\n", (shipped_recipe(name) or Path()).read_text(), re.MULTILINE)[:12])
    assert f"cockpit run {name}" in head
    assert quantities.grouped(parameters) + " parameters" in head
    assert not label or f"Label {label}" in head
    assert stage.max_steps is not None
    tokens = stage.max_steps * stage.per_device_train_batch_size * stage.gradient_accumulation_steps * stage.max_length
    time = quantities.duration(planned_seconds(tokens * sizes.training_operations(stage.max_length)))
    assert f"Time: {time} on an {PLANNED_DEVICE} at {100 * PLANNED_SHARE:.0f} % of its peak" in head


@pytest.mark.parametrize("name", SIZES)
def test_no_tensor_of_a_planned_model_falls_back_to_a_larger_type(name: str) -> None:
    sizes = sizes_of(name)
    assert [size % 256 for size in (sizes.hidden_size, sizes.intermediate_size, sizes.queries)] == [0, 0, 0]


@pytest.mark.parametrize("name", SLM)
def test_the_trainings_of_the_small_models_have_the_plan_s_settings(name: str) -> None:
    stage = base_of(name)
    assert (stage.learning_rate, stage.adam_beta1, stage.adam_beta2, stage.weight_decay) == (3e-4, 0.9, 0.95, 0.1)
    assert (stage.lr_scheduler_type, stage.min_lr_rate, stage.warmup_steps) == ("cosine_with_min_lr", 0.1, 2000)
    assert (stage.per_device_train_batch_size, stage.gradient_accumulation_steps, stage.max_grad_norm) == (8, 4, 1.0)
    assert (stage.save_steps, stage.save_total_limit, stage.eval_steps, stage.sample_steps) == (5000, 5, 5000, 5000)
    assert (stage.guards.grad_norm, stage.retry.max_attempts) == (1000.0, 3)
    assert (stage.guards.no_improvement or 0) * (stage.max_steps or 0) == pytest.approx(10_000)
    limits = {gate.metric: gate.value for gate in stage.gate if gate.op == "<"}
    assert limits["eval_perplexity"] == {"tiny": 50, "small": 30, "medium": 20, "large": 15}[name.rpartition("-")[2]]
    sources = next(stage for stage in loaded(name).stage if stage.name == "corpus").source
    assert {one.label: one.weight for one in sources} == {
        "kernel": 40, "pci-ids": 20, "usb-ids": 10, "administration": 20, "instructions": 10,
    }  # fmt: skip


def test_within_a_tenth_of_their_labels_are_all_but_the_largest() -> None:
    for name in SLM:
        parameters, label = SIZES[name]
        near = abs(parameters / (float(label[:-1]) * 1e6) - 1) <= 0.1
        assert near == (name != "auton-slm-large")
