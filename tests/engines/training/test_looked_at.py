"""What a look at data says before a training is what then happens, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.events.results import Evaluated
from engines.events.steps import Step, StepsPlanned
from engines.look.answer import Job
from engines.look.order import first_examples
from engines.look.stage_look import look_at
from tests.engines.training.attempts import committed_steps, context, of_kind, run_stage
from tests.engines.training.tiny import FINETUNE

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "fields",
    [
        {"max_steps": None, "num_train_epochs": 1.5, "eval_steps": 2},
        {"max_steps": 7, "save_steps": 5, "seed": 9, "max_length": 27},
        {"max_steps": None, "gradient_accumulation_steps": 1, "save_steps": 2, "eval_steps": 3, "max_length": 26},
        {"max_steps": None, "per_device_train_batch_size": 5, "num_train_epochs": 2, "seed": 3},
        {"max_steps": None, "num_train_epochs": 0.3, "save_steps": 1, "eval_steps": 1},
        {"max_steps": 2, "train_on": "all", "truncation": "left", "max_length": 20, "eval_steps": 5},
        {"max_steps": 3, "truncation": "answer", "max_length": 24, "save_steps": 50},
        {"max_steps": 2, "chat_template": "zephyr", "train_on": "last-answer", "save_steps": 2, "eval_steps": 2},
        {"max_steps": 5, "per_device_train_batch_size": 13, "gradient_accumulation_steps": 1, "save_steps": 4},
        {
            "max_steps": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 9,
            "eval_max_tokens": 3,
            "eval_steps": 1,
        },
    ],
)
def test_steps_tokens_saves_and_evaluations_are_those_of_the_look(
    tmp_path: Path, model: Path, messages: Path, fields: dict[str, Any]
) -> None:
    stage = {**FINETUNE, **fields}
    found = look_at(Job(stage, str(messages), str(model)), label_s=600, read_s=600)
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    result = run_stage(ctx)
    assert result is not None
    assert found.defects == []
    assert found.examples == result.metrics["examples"]
    assert found.steps == of_kind(ctx, StepsPlanned)[-1].total_steps == len(of_kind(ctx, Step))
    assert found.tokens == of_kind(ctx, Step)[-1].tokens
    assert found.checkpoints == len(committed_steps(ctx, 1))
    assert found.evaluations == len(of_kind(ctx, Evaluated))


@pytest.mark.parametrize(
    ("seed", "epoch", "examples"), [(42, 0, 5), (42, 3, 1000), (0, 1, 2), (7, 0, 1), (2**33, 0, 9)]
)
def test_the_order_of_examples_is_that_of_the_sampler(seed: int, epoch: int, examples: int) -> None:
    from accelerate.data_loader import SeedableRandomSampler

    sampler = SeedableRandomSampler(range(examples), data_seed=seed)
    sampler.set_epoch(epoch)
    assert first_examples(seed, epoch, examples, examples) == list(sampler)
