"""The estimate of a training's memory is within its accuracy of real peaks, and says what fits where it does not.

The peaks were measured by `python -m bench.training_memory --json` on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.training_memory import CASES, HELD_OUT, stage_of
from cockpit.planning.machine import machine_problems, read_machine
from cockpit.planning.memory import (
    ACCURACY,
    MemoryNeed,
    computes_in_bfloat16,
    memory_need,
    shape_of_config,
)
from cockpit.planning.memory_check import (
    Memory,
    StageMemory,
    memory_problems,
    memory_warning,
    memory_words,
    recipe_memory,
)
from recipes.load import load_recipe_text
from recipes.stages.decoder.sizes import Sizes
from recipes.stages.registry import STAGE_TYPES, tag_of_table
from recipes.stages.training import TrainingFields

GIB = 1 << 30
FITTED_ACCURACY = 0.25
LABELLED = {"pretrain": 1.0, "finetune": 0.75, "dpo": 0.75}
"""Shares of the tokens in the measured rows that the loss counts."""
QWEN_14B = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "vocab_size": 152_064,
}  # fmt: skip
QLORA: dict[str, Any] = {
    "name": "tuned", "kind": "finetune", "model": "m/m", "data": "d", "max_length": 2048, "load_in_4bit": True,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "bf16": True,
}  # fmt: skip


def measured() -> dict[str, int]:
    found: dict[str, int] = json.loads(Path(__file__).with_name("measured_memory.json").read_text())
    return found


def stage(fields: dict[str, Any]) -> TrainingFields:
    tag = tag_of_table(fields)
    assert tag is not None
    made = STAGE_TYPES[tag].model_validate(fields)
    assert isinstance(made, TrainingFields)
    return made


def shape(sizes: dict[str, Any]) -> Sizes:
    found = shape_of_config(sizes)
    assert found is not None
    return found


def need(fields: dict[str, Any], sizes: dict[str, Any], **more: Any) -> MemoryNeed:
    made = stage(fields)
    return memory_need(made, shape(sizes), bf16=computes_in_bfloat16(made, natively=False), **more)


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_its_accuracy_of_the_measured_peak(name: str) -> None:
    assert _estimate(name, *CASES[name]) == pytest.approx(measured()[name], rel=FITTED_ACCURACY)


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_estimate_of_trainings_that_it_was_not_fitted_to_is_within_the_accuracy_that_operators_read(
    name: str,
) -> None:
    assert _estimate(name, *HELD_OUT[name]) == pytest.approx(measured()[name], rel=ACCURACY)


def _estimate(name: str, sizes: dict[str, Any], fields: dict[str, Any]) -> int:
    many = "many lengths" in name
    return need(stage_of(fields, sizes), sizes, labelled=LABELLED[fields["kind"]], many_lengths=many).total


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["pretrain", "adapter", "adapter, bfloat16"])
def test_the_peaks_are_those_of_this_machine_too(name: str) -> None:
    from bench.training_memory import measure

    assert measure([name])[name] == pytest.approx(measured()[name], rel=ACCURACY)


def test_a_4_bit_training_of_a_14b_model_has_the_parts_that_are_known_by_hand() -> None:
    found = need({**QLORA, "optim": "adamw_8bit", "gradient_checkpointing": True}, QWEN_14B)
    adapter = 68_812_800
    narrow = 13_212_057_600 * 0.5625 + (14_769_033_216 - 13_212_057_600) * 2
    assert found.weights == pytest.approx(narrow + 4 * adapter, rel=0.01)
    assert (found.gradients, found.optimizer) == (4 * adapter, int(2.03 * adapter))
    pieces = 1 << 26
    assert found.logits == 10 * pieces, "a CPU's loss writes where it reads"
    qlora = {**QLORA, "optim": "adamw_8bit", "gradient_checkpointing": True}
    assert need(qlora, QWEN_14B, on_gpu=True).logits == 16 * pieces
    assert need({**qlora, "bf16": False}, QWEN_14B).logits == 8 * pieces
    assert need({**qlora, "label_smoothing_factor": 0.1}, QWEN_14B).logits == 16 * pieces, "torch's own loss"


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        ({"target_modules": r".*\.(q_proj|down_proj)"}, 48 * 16 * (2 * 5120 + 13824 + 5120)),
        ({"target_modules": ["self_attn.o_proj"], "layers_to_transform": [0, 47]}, 2 * 16 * 2 * 5120),
        ({"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}},
         48 * (16 * 2 * 5120 + 2 * (13824 + 5120))),
        ({"target_modules": ["o_proj"], "use_dora": True}, 48 * (16 * 2 * 5120 + 5120)),
        ({"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]}, 48 * (16 * 2 * 5120 + 5120 * 5120)),
    ],
)  # fmt: skip
def test_gradients_are_those_of_the_layers_that_the_fields_select(fields: dict[str, Any], trained: int) -> None:
    found = need({**QLORA, **fields}, QWEN_14B)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)


def test_an_adapter_is_counted_by_the_names_that_its_model_has() -> None:
    matrices = {f"transformer.h.{layer}.attn.c_attn": (5120, 3 * 5120) for layer in range(48)}
    found = need({**QLORA, "target_modules": ["c_attn"]}, QWEN_14B, matrices=matrices)
    assert found.gradients == 4 * 48 * 16 * 4 * 5120


@pytest.mark.parametrize("fields", [{"init_lora_weights": "pissa"}, {"base_dtype": "float32"}])
def test_a_base_that_stays_in_float32_needs_4_bytes_a_weight_and_what_autocast_keeps(fields: dict[str, Any]) -> None:
    plain = {**QLORA, "load_in_4bit": False}
    usual, wide = need(plain, QWEN_14B), need({**plain, **fields}, QWEN_14B)
    assert wide.weights - usual.weights == 2 * shape(QWEN_14B).parameters
    assert wide.activations - usual.activations >= 2 * shape(QWEN_14B).linear_parameters


def test_more_rows_need_more_and_checkpointing_and_short_rows_need_less() -> None:
    whole = need(QLORA, QWEN_14B)
    usual = whole.total
    assert need({**QLORA, "per_device_train_batch_size": 4}, QWEN_14B).total > usual
    assert need({**QLORA, "gradient_checkpointing": True}, QWEN_14B).total < usual
    assert need(QLORA, QWEN_14B, longest=300).total < usual
    packed = need({**QLORA, "packing": True}, QWEN_14B, longest=300)
    assert packed.total == usual - whole.kernels, "packs are full whatever rows are, and have one length"


@pytest.mark.parametrize("config", [{}, {**QWEN_14B, "num_experts": 8}, {**QWEN_14B, "hidden_size": "wide"},
                                    {**QWEN_14B, "vocab_size": 1 << 60}])  # fmt: skip
def test_nothing_is_said_of_a_shape_that_is_not_known(config: dict[str, Any]) -> None:
    assert shape_of_config(config) is None


def test_packed_sequences_are_full_and_said_to_be() -> None:
    assert "if rows have 54 tokens" in memory_words(StageMemory(stage(QLORA), shape(QWEN_14B), True, 54))
    packed = memory_words(StageMemory(stage({**QLORA, "packing": True}), shape(QWEN_14B), True, 54))
    assert f"if sequences have {stage(QLORA).max_length} tokens" in packed


def test_the_copies_of_saves_are_named_and_are_not_part_of_the_peak() -> None:
    """Weights of an adapter and their two moments, in float32."""
    plain = {**QLORA, "optim": "adamw_torch"}
    usual, waits = need(plain, QWEN_14B), need({**plain, "async_save": False}, QWEN_14B)
    assert (usual.copies, waits.copies) == (3 * usual.gradients, 0)
    assert usual.total == waits.total
    said, silent = (
        memory_words(StageMemory(stage({**plain, "async_save": on}), shape(QWEN_14B), True, None))
        for on in (True, False)
    )
    assert "async_save copies" in said
    assert "async_save" not in silent


def test_a_training_that_does_not_fit_says_which_changes_fit_and_what_they_cost() -> None:
    one = StageMemory(stage({**QLORA, "load_in_4bit": False}), shape(QWEN_14B), True, None)
    assert memory_warning(one, Memory(200 * GIB, 200 * GIB)) == ""
    said = memory_warning(one, Memory(62 * GIB, 62 * GIB))
    assert "per_device_train_batch_size = 1, gradient_accumulation_steps = 8: about" in said
    assert "with the same rows in a step" in said
    assert "about 20% slower" in said
    assert "the base model is rounded" in said
    assert "no smaller micro-batch fits" in memory_warning(one, Memory(4 * GIB, 4 * GIB))


RECIPE = """
schema = 1
name = "large"
[[stage]]
name = "tuned"
kind = "finetune"
output = "model"
model = "./model"
data = "./data"
"""


def test_weights_gradients_and_optimizer_beyond_the_memory_are_refused_at_the_model_s_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("model", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(QWEN_14B))
    loaded = load_recipe_text(RECIPE, tmp_path / "recipe.toml")
    found = recipe_memory(loaded, {})
    monkeypatch.setattr(Memory, "here", staticmethod(lambda: Memory(64 * GIB, 60 * GIB)))
    [problem] = memory_problems(found, loaded)
    assert (problem.line, problem.key) == (8, "tuned.model")
    assert problem.message == "weights, gradients and optimizer need 220 GiB; this machine has 64 GiB"
    monkeypatch.setattr(Memory, "here", staticmethod(lambda: Memory(1024 * GIB, GIB)))
    assert memory_problems(found, loaded) == [], "other processes may end: memory that is not free is a warning"


def test_a_described_machine_with_the_model_s_shape_refuses_what_cannot_fit(tmp_path: Path) -> None:
    sizes = "".join(f"{name} = {value}\n" for name, value in QWEN_14B.items())
    described = tmp_path / "machine.toml"
    described.write_text(f'name = "card"\nmemory_gib = 64\n[shapes."m/m"]\n{sizes}[[gpu]]\nmemory_gib = 16\n'
                         'compute_capability = "8.9"\n')  # fmt: skip
    recipe = RECIPE.replace('model = "./model"', 'model = "m/m"').replace("./data", "d/d")
    loaded = load_recipe_text(recipe, tmp_path / "recipe.toml")
    [problem] = machine_problems(loaded, read_machine(described))
    assert problem.message == "weights, gradients and optimizer need 220 GiB; card has 16 GiB"
