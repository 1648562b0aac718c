"""Pretraining of every model type: sizes, files and steps are those of transformers' own classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.events.steps import Step
from recipes.load import load_recipe_text
from recipes.problems import RecipeError
from recipes.stages.decoder.model_types import MODEL_TYPES
from recipes.stages.pretrain import PretrainStage
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import PRETRAIN, SHAPE

STAGE: dict[str, Any] = {
    **PRETRAIN, "attention_dropout": 0.0, "max_steps": 4, "weight_decay": 0.1, "adam_beta2": 0.95,
    "save_strategy": "no",
}  # fmt: skip
WSD = {"lr_scheduler_type": "warmup_stable_decay", "min_lr_rate": 0.1, "num_decay_steps": 0.5, "decay_type": "linear"}
SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[float], float]]] = {
    "llama": ({"lr_scheduler_type": "cosine_with_min_lr"}, lambda at: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * at))),
    "qwen3": (WSD, lambda at: 1.0 - 0.9 * at),
    "olmo2": ({"lr_scheduler_type": "constant_with_warmup"}, lambda _at: 1.0),
}
"""Fields of a schedule, and the share of the peak after the warm-up by the share of the remaining steps."""
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIX_HEADS = {"num_attention_heads": 6, "head_dim": 16}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 32}, {}),
    "mistral": (
        "Mistral",
        {"num_attention_heads": 6, "head_dim": 16, "sliding_window": 5, "rope_parameters": YARN},
        {},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "rope_theta": 5e5, "rope_parameters": LINEAR}, {"use_sliding_window": False}),
    "olmo2": ("Olmo2", {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "initializer_range": 0.03}, {}),
}
"""Of each type: transformers' name, fields of the stage, and what transformers' settings have besides."""


def by_hand(case: str) -> Any:
    """The model of a case with transformers' own names, written out here."""
    from tests.engines.training.from_scratch import new_model

    name, fields, more = CASES[case]
    rope = {"rope_theta": fields.get("rope_theta", 10_000.0), **fields.get("rope_parameters", {"rope_type": "default"})}
    own = {key: value for key, value in fields.items() if key not in ("rope_theta", "rope_parameters")}
    usual = {"max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    width = {} if name == "Olmo2" else {"head_dim": SHAPE["hidden_size"] // SHAPE["num_attention_heads"]}
    return new_model(name, {**SHAPE, **usual, **width, "rope_parameters": rope, **own, **more})


def stage_of(case: str) -> dict[str, Any]:
    schedule = SCHEDULES[case][0] if case in SCHEDULES else {}
    return {**STAGE, "model_type": case, **CASES[case][1], **schedule}


def rate_by_hand(case: str) -> Any:
    """Two steps of warm-up to 3e-3, then the shape over the other two; of a stable rate, they are the fall."""
    from tests.engines.training.by_hand import rate_of

    if case not in SCHEDULES:
        return rate_of
    shape, least = SCHEDULES[case][1], 0.1 if case == "qwen3" else 0.0  # only that warm-up begins at the end's rate
    return lambda _stage, done: 3e-3 * (least + (1 - least) * done / 2 if done < 2 else shape((done - 2) / 2))


def test_every_model_type_has_a_case() -> None:
    assert set(CASES) == set(MODEL_TYPES)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_losses_norms_and_rates_are_those_of_a_loop_by_hand_at_every_step(
    case: str, tmp_path: Path, tokens: Path
) -> None:
    from tests.engines.training.from_scratch import assert_same_steps, steps, whole_windows

    ctx = context(tmp_path, stage_of(case), {"data": tokens})
    assert run_stage(ctx) is not None
    expected = list(steps(by_hand(case), *whole_windows(tokens, 16), STAGE, rate_by_hand(case)))
    assert_same_steps(of_kind(ctx, Step), expected)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_sizes_and_planned_tensors_are_those_of_the_real_model(case: str) -> None:
    from exporters.gguf.quant_types import model_shapes
    from exporters.hf_model.architectures import ARCHITECTURES, architecture_of

    stage, model = PretrainStage.model_validate(stage_of(case)), by_hand(case)
    assert stage.sizes(261).parameters == sum(weight.numel() for weight in model.parameters())
    layer = dict(model.model.layers[0].named_parameters())
    norms = {name.removesuffix(".weight") for name, weight in layer.items() if weight.dim() == 1}
    assert norms == set(stage.decoder.norms)
    config = {**model.config.to_dict(), "architectures": [stage.decoder.class_name]}
    assert architecture_of(Path("model"), config) is ARCHITECTURES[stage.decoder.class_name], "a file can have it"
    planned = model_shapes(ARCHITECTURES[stage.decoder.class_name], {**stage.config(), "vocab_size": 261})
    assert planned == model_shapes(ARCHITECTURES[stage.decoder.class_name], config)


RECIPE = """schema = 1
name = "small"
[[stage]]
name = "base"
kind = "pretrain"
data = "./tokens"
hidden_size = 256
intermediate_size = 512
num_hidden_layers = 2
max_length = 64
"""
MISFITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "the tiny of a plan": (
        "num_attention_heads = 6\nnum_key_value_heads = 2",
        (
            "base.hidden_size — must be a multiple of num_attention_heads; got 256 and 6; allowed a multiple of 6;"
            " num_attention_heads 1, 2, 4, 8 divide 256; or use head_dim with model_type mistral and qwen3",
        ),
    ),
    "several at once": (
        'num_attention_heads = 4\nnum_key_value_heads = 3\nsliding_window = 8\nrope_parameters = {rope_type = "yarn"}',
        (
            "base.num_key_value_heads — must divide num_attention_heads; got 3 and 4",
            "base.sliding_window — llama has no windows; got 8; allowed leave it out, or model_type mistral",
            "base.rope_parameters.factor — needed for rope_type yarn",
            "base.rope_parameters.original_max_position_embeddings — needed for rope_type yarn",
        ),
    ),
    "positions of another family": (
        'model_type = "qwen3"\nnum_attention_heads = 4\nnum_key_value_heads = 2\nmax_position_embeddings = 32\n'
        'rope_parameters = {rope_type = "llama3", factor = 2.0, original_max_position_embeddings = 64,'
        " low_freq_factor = 4.0, high_freq_factor = 4.0}",
        (
            "rope_parameters.rope_type — GGUF files of qwen3 cannot have it; got llama3; allowed default, linear, yarn",
            "rope_parameters.high_freq_factor — must be more than low_freq_factor",
            "base.max_position_embeddings — must be at least max_length, 64; got 32",
        ),
    ),
    "a value that nothing reads": (
        "num_attention_heads = 4\nnum_key_value_heads = 2\nrope_parameters = {factor = 2.0}",
        ("base.rope_parameters.factor — rope_type default does not read it; got 2.0; allowed leave it out",),
    ),
    "a tied head that a file cannot have": (
        'model_type = "olmo2"\nnum_attention_heads = 4\nnum_key_value_heads = 2\nhead_dim = 32',
        (
            "base.head_dim — olmo2 has heads of hidden_size / num_attention_heads; got 32; allowed 64",
            "base.tie_word_embeddings — GGUF files of olmo2 have no tied output head; got true; allowed false",
        ),
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_said_when_a_recipe_is_checked_all_at_once(name: str) -> None:
    fields, expected = MISFITS[name]
    with pytest.raises(RecipeError) as caught:
        load_recipe_text(RECIPE + fields + "\n", "small.toml")
    words = [problem.words for problem in caught.value.problems if problem.key != "base.data"]
    assert len(words) == len(expected)
    assert [part for part in expected if not any(part in line for line in words)] == []


def test_heads_of_any_number_fit_with_a_width_of_their_own() -> None:
    fields = 'model_type = "mistral"\nnum_attention_heads = 6\nnum_key_value_heads = 2\nhead_dim = 64\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe_text(RECIPE + fields, "small.toml")
    assert [problem.key for problem in caught.value.problems] == ["base.data"], "the recipe has no tokens"
