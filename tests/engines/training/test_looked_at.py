"""What a look at data says before a training is what then happens, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.events import Evaluated, Step, StepsPlanned
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
